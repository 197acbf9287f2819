"""Several processes, each with its own tasks of one meta-batch."""

from trlearner.distributed.gradients import broadcast, sync_gradients
from trlearner.distributed.lost_rank import LostRank, guarded
from trlearner.distributed.meta_step import MetaStep
from trlearner.distributed.ranks import own_tasks

__all__ = ["LostRank", "MetaStep", "broadcast", "guarded", "own_tasks", "sync_gradients"]
