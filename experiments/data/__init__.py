"""Families of tasks: each module makes the problems that it names in `PROBLEMS`."""
