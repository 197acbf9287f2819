"""How many tasks run: one after the other, or all at once."""

from trlearner.engines.task_learner import InnerLoop

__all__ = [
    "InnerLoop",
]
