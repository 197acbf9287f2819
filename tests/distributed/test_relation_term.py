"""Answers by pairs of task and model are mixed as those of all models are."""

from __future__ import annotations

import contracts
import pytest
import torch

from trlearner.distributed.relation_term import Mixture, Pairs, mix_pairs, pairs_of
from trlearner.relations.consistency import mix, neighbours, relation_weights

TASKS, QUERIES, CLASSES = 5, 4, 3


@pytest.mark.parametrize("alignment", [False, True], ids=["as they are", "aligned"])
@pytest.mark.parametrize("kind", ["values", "logits"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_pairs_are_mixed_like_whole_tables(
    kind: Mixture, top_k: int | None, alignment: bool
) -> None:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    says, relations = draw(TASKS, TASKS, QUERIES, CLASSES), draw(TASKS, TASKS)
    matching = draw(TASKS, TASKS, CLASSES, CLASSES).softmax(-2) if alignment else None
    weights = relation_weights(relations, top_k=top_k)
    expected = mix(says, weights, kind, matching)
    found, asked = [], 0
    for own in (slice(0, 3), slice(3, 5)):  # two ranks' models
        part = None if matching is None else matching[own]
        pairs = pairs_of(weights, neighbours(relations, top_k), own, part)
        asked += len(pairs.tasks)
        answers = says[own.start + pairs.models, pairs.tasks]
        found.append(mix_pairs(answers, pairs, TASKS, kind))
    # All models about each task; or the nearest only, and of each rank one without weight.
    assert asked == (TASKS * top_k + 2 if top_k else TASKS**2)
    parts = torch.stack(found)
    together = parts.sum(0) if kind == "values" else parts.logsumexp(0)
    contracts.close(together, expected, 1e-12)
    seed = torch.randn(expected.shape, generator=g, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((together * seed).sum(), (says, relations), retain_graph=True),
        torch.autograd.grad((expected * seed).sum(), (says, relations)),
        strict=True,
    ):
        contracts.close(a, b, 1e-12)


def test_logits_need_classes() -> None:
    pairs = Pairs(torch.arange(2), torch.arange(2), torch.ones(2), None)
    with pytest.raises(ValueError, match="at least two classes, got .1, 2, 4, 1.*mixture='values'"):
        mix_pairs(torch.zeros(2, QUERIES, 1), pairs, 2, "logits")
