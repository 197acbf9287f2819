"""TRLearner: a plug-in regularizer that lets the tasks of a meta-batch help each other."""

from trlearner.base import types
from trlearner.base.functional import pure_call
from trlearner.diagnostics.doctor.examine import doctor
from trlearner.diagnostics.monitor.monitor import RelationMonitor
from trlearner.diagnostics.monitor.plot import plot_relations
from trlearner.diagnostics.monitor.plot_memory import plot_memory
from trlearner.distributed.meta_step import MetaStep
from trlearner.encoders.function import FunctionEncoder
from trlearner.encoders.input import InputEncoder
from trlearner.encoders.labelled import LabelledEncoder
from trlearner.encoders.protocol import Encoder
from trlearner.encoders.update import UpdateEncoder
from trlearner.engines.adapted import Adapted
from trlearner.learners.anil import ANIL
from trlearner.learners.bayes_head import BayesHead
from trlearner.learners.maml import MAML
from trlearner.learners.metasgd import MetaSGD
from trlearner.learners.protocol import GradientLearner, Learner
from trlearner.learners.protonet import ProtoNet
from trlearner.learners.tnet import TNet
from trlearner.memory.task_memory import TaskMemory
from trlearner.regularizer.output import Output
from trlearner.regularizer.regularizer import TRLearner
from trlearner.relations.consistency import relation_consistency, relation_weights
from trlearner.relations.similarity import TaskRelation, relation_matrix
from trlearner.samplers.adaptive import AdaptiveTaskSampler
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.samples import Samples

__all__ = [
    "ANIL",
    "MAML",
    "Adapted",
    "AdaptiveTaskSampler",
    "BayesHead",
    "Encoder",
    "FunctionEncoder",
    "GradientLearner",
    "InputEncoder",
    "LabelledEncoder",
    "Learner",
    "MetaSGD",
    "MetaStep",
    "Output",
    "ProtoNet",
    "RelationMonitor",
    "Samples",
    "TNet",
    "TRLearner",
    "TaskBatch",
    "TaskMemory",
    "TaskRelation",
    "UpdateEncoder",
    "doctor",
    "plot_memory",
    "plot_relations",
    "pure_call",
    "relation_consistency",
    "relation_matrix",
    "relation_weights",
    "types",
]


def __dir__() -> list[str]:
    """The public names, and the rooms that have more."""
    return sorted([*__all__, "diagnostics", "distributed", "engines", "relations", "samplers"])
