"""What every room may use: errors, files, processes, devices and the three nouns."""
