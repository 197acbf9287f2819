"""An encoder that describes a task by its adaptation."""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trlearner.base.checks import check_flag, check_whole
from trlearner.base.types import State
from trlearner.encoders.protocol import Encoder
from trlearner.engines.adapted import Models
from trlearner.engines.task_learner import GradientTaskLearner
from trlearner.learners.extractor import Extractor
from trlearner.learners.protocol import Learner
from trlearner.tasks.batch import TaskBatch
from trlearner.tasks.prototype import batch_prototypes

WORD = 0xFFFFFFFF
Integers = TypeVar("Integers", int, Tensor)


class UpdateEncoder(Encoder):
    """``e_i[b] = sum of s(p) (theta_i - theta)_p over all p with h(p) = b``: the update, sketched.

    Everything that adapted to task i, minus where it started, as one vector, compressed to `dim` numbers
    by a count-sketch (Charikar et al. 2002): each coordinate p is added to a bucket h(p) with a sign
    s(p), both hashed anew at every call, so nothing is learned or stored. Inner products survive in
    expectation over seeds; a cosine is off by about ``1 / sqrt(dim)``.

    It needs no extractor and sees whatever the inner loop sees, labels included. In a loop of your own, hand
    over where it starts and what it adapts: ``reg.collect(start=list(net.parameters()))`` and
    ``tasks.add(..., fast=adapted)``. ``align`` compares classes by their mean inputs. Parameters with large
    updates dominate. With a learner's ``first_order=True`` the embeddings teach its initial parameters
    nothing: there ``theta_i - theta`` does not depend on theta. With ``steps=0`` all embeddings
    are zero, and so are the relations.

    Args:
        dim: How many buckets.
        seed: Of the hash; another seed is another sketch.
        detach: Train the learner by nothing that the relations want.

    Example:
        >>> import trlearner as tr
        >>> learner = tr.MAML(torch.nn.Linear(1, 1), lr=0.1, steps=2)
        >>> reg = tr.TRLearner(encoder=tr.UpdateEncoder(dim=16))
        >>> x = torch.rand(4, 10, 1)
        >>> reg(learner, tr.TaskBatch(support=(x, 2 * x), query=(x, 2 * x))).relations.shape
        torch.Size([4, 4])
        >>> list(reg.encoder.state_dict())
        []
    """

    def __init__(self, dim: int, seed: int = 0, detach: bool = False) -> None:
        super().__init__()
        check_whole("dim", dim)
        check_whole("seed", seed, least=None)
        check_flag("detach", detach)
        self.dim = dim
        self.seed = seed
        self.detach = detach

    def prepare(self, learner: Learner | None, batch: TaskBatch) -> None:
        """Refuses a learner that descends no gradient, before any graph is made of it."""
        if learner is not None and not isinstance(learner, GradientTaskLearner):
            raise TypeError(
                "UpdateEncoder describes a task by how gradient descent moves parameters, but "
                f"{type(learner).__name__} descends no gradient. Use InputEncoder, LabelledEncoder or "
                "FunctionEncoder."
            )

    def encode(self, state: State, batch: TaskBatch, models: Models) -> Tensor:
        """The sketched update of every task: ``[tasks, dim]``."""
        updates = models.moved()
        return count_sketch(updates.detach() if self.detach else updates, self.dim, self.seed)

    def prototypes(self, state: State, batch: TaskBatch, models: Models) -> Tensor:
        """Mean inputs ``[tasks, classes, features]`` of the support's classes, for there is no extractor."""
        features = Extractor(None).features(models, state, batch.support.x)
        return batch_prototypes(features, batch.support)[0]


def count_sketch(
    vectors: Float[Tensor, "tasks coordinates"], dim: int, seed: int = 0
) -> Float[Tensor, "tasks {dim}"]:
    """Vectors compressed to `dim` numbers, such that inner products stay the same in expectation.

    e[b] = sum of s(p) v_p over all p with h(p) = b (Charikar et al. 2002); see `buckets_and_signs`.

    Args:
        vectors: One a task.
        dim: How many buckets.
        seed: Of the hash.

    Example:
        >>> count_sketch(torch.eye(2, 3), dim=4)
        tensor([[ 1.,  0.,  0.,  0.],
                [ 0.,  0.,  0., -1.]])
    """
    buckets, signs = buckets_and_signs(vectors.shape[1], dim, seed, vectors.device)
    # In half precision a long sum would lose most of its terms.
    wide = vectors.to(torch.promote_types(torch.float32, vectors.dtype))
    return wide.new_zeros(len(vectors), dim).index_add(1, buckets, wide * signs)


def buckets_and_signs(
    coordinates: int, dim: int, seed: int, device: torch.device | None = None
) -> tuple[Int[Tensor, " coordinates"], Int[Tensor, " coordinates"]]:
    """The bucket in ``range(dim)`` and the sign of every coordinate; the same on every device.

    Both are read off ``mix(mix(p) ^ key)``: the sign is its last bit, the bucket the rest of it modulo `dim`.
    """
    key = _mix(_mix(seed & WORD) ^ ((seed >> 32) & WORD))
    hashed = _mix(_mix(torch.arange(coordinates, device=device)) ^ key)
    return (hashed >> 1) % dim, 1 - 2 * (hashed & 1)


def _mix(word: Integers) -> Integers:
    """A bijection of 32-bit words that flips every bit of its result with probability 1/2.

    The constants are those of hash-prospector (Wellons 2018; TheIronBorn 2022). Both are below 2^31, so
    that every product fits into int64: how a device wraps what overflows cannot matter.
    """
    word = (word ^ (word >> 16)) * 0x21F0AAAD & WORD
    word = (word ^ (word >> 15)) * 0x735A2D97 & WORD
    return word ^ (word >> 15)
