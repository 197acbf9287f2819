"""Which tasks to train on next."""

from trlearner.samplers.adaptive import AdaptiveTaskSampler
from trlearner.samplers.evidence import Evidence
from trlearner.samplers.hard import HardTaskSampler
from trlearner.samplers.lookahead import lookahead
from trlearner.samplers.sampler import TaskSampler
from trlearner.samplers.scores import register_score
from trlearner.samplers.uniform import UniformTaskSampler

__all__ = [
    "AdaptiveTaskSampler",
    "Evidence",
    "HardTaskSampler",
    "TaskSampler",
    "UniformTaskSampler",
    "lookahead",
    "register_score",
]
