"""Shards: WebDataset tars, written byte for byte the same each time, read as one sequence."""
