"""Relations between tasks, as pure functions of tensors."""

from trlearner.relations.align import hungarian, sinkhorn
from trlearner.relations.consistency import relation_consistency, relation_weights
from trlearner.relations.gaussian import (
    best_models,
    gaussian_posterior,
    posterior_mean,
    posterior_variance,
)
from trlearner.relations.posterior import Posterior
from trlearner.relations.similarity import TaskRelation, relation_matrix

__all__ = [
    "Posterior",
    "TaskRelation",
    "best_models",
    "gaussian_posterior",
    "hungarian",
    "posterior_mean",
    "posterior_variance",
    "relation_consistency",
    "relation_matrix",
    "relation_weights",
    "sinkhorn",
]
