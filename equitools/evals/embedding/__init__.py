"""Features themselves, and what can be seen in them."""
