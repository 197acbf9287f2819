"""How a task becomes a vector."""
