"""Several processes, each with its own tasks of one meta-batch."""

from trlearner.distributed.failure import LostRank, guarded
from trlearner.distributed.gradients import broadcast, sync_gradients
from trlearner.distributed.parts import own_tasks
from trlearner.distributed.step import MetaStep
from trlearner.distributed.traffic import Traffic, traffic

__all__ = [
    "LostRank",
    "MetaStep",
    "Traffic",
    "broadcast",
    "guarded",
    "own_tasks",
    "sync_gradients",
    "traffic",
]
