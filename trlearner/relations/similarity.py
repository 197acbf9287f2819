"""The similarity layer: how related are the tasks of a batch?"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trlearner.base.checks import check_generator, check_number, check_tensor, check_whole
from trlearner.base.functional import directions
from trlearner.base.warn import warn


def relation_matrix(
    embeddings: Float[Tensor, "tasks dim"], weight: Float[Tensor, "heads dim"]
) -> Float[Tensor, "tasks tasks"]:
    """Mean over heads of the cosines of reweighted embeddings.

    m_ij = 1/K * sum_k cos(w_k * e_i, w_k * e_j), with cosines of ``v * rsqrt(v.v + eps^2)``
    (arXiv 2409.08474, eq. 4).

    Args:
        embeddings: One vector a task.
        weight: One vector a head.

    Returns:
        M, symmetric. Its diagonal is 1, or 0 where an embedding is zero.

    Example:
        >>> relation_matrix(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.ones(1, 2))
        tensor([[1.0000, 0.7071],
                [0.7071, 1.0000]])
    """
    check_tensor("embeddings", embeddings, "tasks, dim")
    check_tensor("weight", weight, "heads, dim")
    return head_relations(embeddings, weight).mean(0)


def head_relations(
    embeddings: Float[Tensor, "tasks dim"], weight: Float[Tensor, "heads dim"]
) -> Float[Tensor, "heads tasks tasks"]:
    """The cosines of every head by itself; `relation_matrix` is their mean."""
    # In half precision the square of epsilon would be zero.
    wide = torch.promote_types(torch.float32, embeddings.dtype)
    units = directions(weight[:, None].to(wide) * embeddings.to(wide))
    # Autocast would multiply in half precision, which leaves two or three digits of a cosine.
    with torch.autocast(units.device.type, enabled=False):
        return units @ units.mT


class TaskRelation(nn.Module):
    """The multi-headed similarity layer: ``[tasks, dim] -> M [tasks, tasks]``.

    Args:
        dim: The width of a task embedding, at least 2: a cosine of single numbers is 1 or -1.
        heads: How many views of it are compared.
        noise: Standard deviation of the heads around 1 at the start, so that they differ.
        generator: Draws that noise; by default one of its own, so that the global random state is
            left alone.

    Example:
        >>> relation = TaskRelation(dim=8, heads=4)
        >>> relation(torch.ones(3, 8)).shape
        torch.Size([3, 3])
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        noise: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("heads", heads)):
            check_whole(name, value)
        if dim == 1:
            warn(
                "dim must be at least 2 to tell tasks apart, got 1: the cosine of two numbers is 1 or -1, "
                "so the relations learn nothing. Give the encoder a larger dim."
            )
        check_number("noise", noise, least=0)
        check_generator(generator)
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(1 + noise * torch.randn(heads, dim, generator=generator))

    def forward(self, embeddings: Float[Tensor, "tasks dim"]) -> Float[Tensor, "tasks tasks"]:
        """M of these embeddings; see `relation_matrix`."""
        return relation_matrix(embeddings, self.weight)

    def extra_repr(self) -> str:
        """Heads and width."""
        heads, dim = self.weight.shape
        return f"dim={dim}, heads={heads}"
