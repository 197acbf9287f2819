"""TRLearner: a plug-in regularizer that lets the tasks of a meta-batch help each other."""

from trlearner.align import hungarian, sinkhorn
from trlearner.batch import TaskBatch
from trlearner.consistency import relation_consistency, relation_weights
from trlearner.distributed.step import MetaStep
from trlearner.doctor.examine import doctor
from trlearner.doctor.finding import Diagnosis, Finding
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
from trlearner.monitor.monitor import RelationMonitor
from trlearner.monitor.plot import plot_relations
from trlearner.monitor.plot_memory import plot_memory
from trlearner.output import Output
from trlearner.regularizer import TRLearner
from trlearner.relation import TaskRelation, relation_matrix
from trlearner.sampler.adaptive import AdaptiveTaskSampler
from trlearner.sampler.hard import HardTaskSampler
from trlearner.sampler.lookahead import lookahead
from trlearner.sampler.registry import Evidence, register_score
from trlearner.sampler.sampler import TaskSampler
from trlearner.sampler.uniform import UniformTaskSampler
from trlearner.samples import Samples
from trlearner.seam import InnerLoop

__all__ = [
    "ANIL",
    "MAML",
    "Adapted",
    "AdaptiveTaskSampler",
    "BayesHead",
    "Diagnosis",
    "Encoder",
    "Evidence",
    "Finding",
    "FunctionEncoder",
    "GradientLearner",
    "HardTaskSampler",
    "InnerLoop",
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
    "TaskSampler",
    "UniformTaskSampler",
    "UpdateEncoder",
    "doctor",
    "hungarian",
    "lookahead",
    "plot_memory",
    "plot_relations",
    "register_score",
    "relation_consistency",
    "relation_matrix",
    "relation_weights",
    "sinkhorn",
]
