"""The curves that a monitor draws, and the page on which they stand together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trlearner.monitor import measure

GROUP = "trlearner."
HEADS = 8
"""Norms are drawn of so many heads."""


def of_step(found: Mapping[str, NDArray[Any]], lam: float) -> dict[str, float]:
    """What a step says by itself.

    Args:
        found: ``own`` and ``related``, the two losses; ``relations``, ``weights``, ``heads`` (M of each
            head) and ``norms`` (each head's length); ``confidence`` of an alignment; ``own_own``,
            ``own_related`` and ``related_related``, products of the two losses' gradients;
            ``reference_before`` and ``reference_now``, M of the same tasks twice. What is missing is
            left out.
        lam: λ.
    """
    curves = {"loss/lambda": lam}
    for name, key in (("loss/own", "own"), ("loss/relation", "related")):
        if key in found:
            curves[name] = float(found[key])
    if {"own", "related"} <= found.keys():
        curves["loss/ratio"] = lam * _ratio(float(found["related"]), float(found["own"]))
    if "relations" in found:
        curves |= _of_relations(found)
    if "confidence" in found:
        curves["relations/alignment_confidence"] = float(found["confidence"])
    if "own_own" in found:
        own, both, related = (float(found[f"{n}"]) for n in PRODUCTS)
        curves["gradient/cosine"] = _ratio(both, (own * related) ** 0.5)
        curves["gradient/ratio"] = _ratio(related, own) ** 0.5
    if "reference_before" in found:
        curves["relations/drift"] = measure.drift(found["reference_now"], found["reference_before"])
    return {GROUP + name: value for name, value in curves.items()}


PRODUCTS = ("own_own", "own_related", "related_related")


def _of_relations(found: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    relations, weights = found["relations"], found["weights"]
    norms = {f"heads/norm_{k}": float(v) for k, v in enumerate(found["norms"][:HEADS])}
    pairs = measure.off_diagonal(relations)
    return {
        "relations/mean": float(pairs.mean()) if len(pairs) else float("nan"),
        "relations/spread": float(pairs.std()) if len(pairs) else float("nan"),
        "relations/negative_share": measure.negative_share(relations),
        "weights/row_entropy": float(measure.row_entropy(weights).mean()),
        "weights/neighbours": measure.neighbours(weights),
        "heads/disagreement": measure.disagreement(found["heads"]),
        **norms,
    }


def of_truth(
    relations: NDArray[Any],
    families: Sequence[Hashable] | None,
    similarity: NDArray[Any] | None,
) -> dict[str, float]:
    """How well M agrees with what is known of the tasks.

    Args:
        relations: M.
        families: The tasks' own; without a `similarity`, tasks of one family count as similar.
        similarity: The true one, of every pair.
    """
    curves: dict[str, float] = {}
    if families is not None:
        curves["truth/purity"] = measure.purity(relations, families)
        if similarity is None:
            similarity = measure.same_family(families).astype(float)
    if similarity is not None:
        curves["truth/rank_correlation"] = measure.rank_correlation(relations, similarity)
    return {GROUP + name: value for name, value in curves.items()}


def of_memory(weights: NDArray[Any], share: float) -> dict[str, float]:
    """How much remembered models contribute to a memory's answers, and how many of them, effectively.

    Args:
        weights: Their coefficients ``[tasks, kept]``.
        share: Of these models in the answers.
    """
    curves = {"memory/share": share}
    if weights.size:
        curves["memory/contributors"] = measure.neighbours(weights)
    return {GROUP + name: value for name, value in curves.items()}


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else float("nan")


def layout() -> dict[str, dict[str, list[Any]]]:
    """A page of curves, as TensorBoard's custom scalars take it."""
    page = {
        "the learner's own loss": "loss/own",
        "relation loss": "loss/relation",
        "relation term / own loss": "loss/ratio",
        "do their gradients agree? (cosine)": "gradient/cosine",
        "mean relation": "relations/mean",
        "spread of relations": "relations/spread",
        "models that a task listens to": "weights/neighbours",
        "change of M since the last look": "relations/drift",
        "do the heads differ?": "heads/disagreement",
        "nearest neighbour of one's own family": "truth/purity",
        "M against the truth (rank correlation)": "truth/rank_correlation",
    }
    pattern = {title: (GROUP + name).replace(".", r"\.") + "$" for title, name in page.items()}
    return {"TRLearner": {title: ["Multiline", [p]] for title, p in pattern.items()}}


def spreads(found: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What is shown as a histogram: all pairs' relations and weights, all tasks' lengths."""
    return {
        GROUP + "relations/all": measure.off_diagonal(found["relations"]),
        GROUP + "weights/all": measure.off_diagonal(found["weights"]),
        GROUP + "embeddings/lengths": np.linalg.norm(found["embeddings"], axis=1),
    }
