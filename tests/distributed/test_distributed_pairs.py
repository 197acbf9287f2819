"""Answers by pairs of task and model are mixed as those of all models are."""

from __future__ import annotations

import contracts
import pytest
import torch

from trlearner.distributed.pairs import mix_pairs, pairs_of
from trlearner.relations.consistency import mix, neighbours, relation_weights

TASKS, QUERIES, CLASSES = 5, 4, 3


@pytest.mark.parametrize("alignment", [False, True], ids=["as they are", "aligned"])
@pytest.mark.parametrize("kind", ["values", "logits"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_pairs_are_mixed_like_whole_tables(kind: str, top_k: int | None, alignment: bool) -> None:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    says, relations = draw(TASKS, TASKS, QUERIES, CLASSES), draw(TASKS, TASKS)
    matching = draw(TASKS, TASKS, CLASSES, CLASSES).softmax(-2) if alignment else None
    weights = relation_weights(relations, top_k=top_k)
    expected = mix(says, weights, kind, matching)
    found, asked = [], 0
    for first, own in ((0, 3), (3, 0), (3, 2)):  # three ranks' models
        tasks, models = pairs_of(TASKS, neighbours(relations, top_k), first, own)
        asked += len(tasks)
        part = None if matching is None else matching[first + models, tasks]
        found.append(
            mix_pairs(
                says[first + models, tasks],
                weights[tasks, first + models],
                tasks,
                TASKS,
                kind,
                part,
            )
        )
    assert asked == TASKS * (top_k or TASKS)  # all models about each task, or the nearest only
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
    says, one = torch.zeros(2, QUERIES, 1), torch.ones(2)
    with pytest.raises(ValueError, match="at least two classes, got .2, 4, 1.*mixture='values'"):
        mix_pairs(says, one, torch.tensor([0, 1]), 2, "logits", None)
