"""Which tasks to train on next, and which samples tell a task apart."""
