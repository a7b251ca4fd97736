"""Losses that terms share, computed block by block."""
