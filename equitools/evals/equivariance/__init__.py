"""How equivariant features are, and what they tell of a change."""
