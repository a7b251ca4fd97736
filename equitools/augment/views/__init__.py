"""The views that a recipe makes: drawn, laid out, carried out."""
