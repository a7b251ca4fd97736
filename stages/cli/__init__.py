"""What the programs share: the only place that parses words and prints."""
