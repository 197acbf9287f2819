"""Tasks that were learned, and what they say of new ones."""
