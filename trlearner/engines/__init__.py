"""How many tasks run: one after the other, or all at once."""
