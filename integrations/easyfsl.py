"""Loops on easyfsl (github.com/sicara/easy-few-shot-learning): episodes, classifiers with prototypes.

Before, a step an episode::

    for images, labels, queries, answers, _ in loader:
        optimizer.zero_grad()
        classifier.process_support_set(images, labels)
        loss_fn(classifier(queries), answers).backward()
        optimizer.step()

After, a step every few episodes, for a lone task has no neighbours; the optimizer is over
``[*classifier.parameters(), *reg.parameters()]``::

    tasks, loss = reg.collect(ways=5), 0.0  # new
    for episode in loader:
        images, labels, queries, answers, _ = episode
        classifier.process_support_set(images, labels)
        tasks.add(adapted(classifier), **samples(episode))  # new
        loss = loss + loss_fn(classifier(queries), answers) / 4
        if len(tasks) == 4:  # new
            optimizer.zero_grad()
            (loss + tasks.penalty()).backward()  # new
            optimizer.step()
            tasks, loss = reg.collect(ways=5), 0.0  # new

The next episode overwrites the prototypes: `adapted` keeps them. Each episode numbers its classes anew, so
give `TRLearner` ``align="sinkhorn"``, and, to use the features that the classifier has anyway,
``encoder=tr.InputEncoder(classifier.backbone, dim=...)``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from trlearner.integrations.snapshot import snapshot


def adapted(classifier: nn.Module) -> Callable[[Tensor], Any]:
    """The classifier with the support set that it has processed last, whatever it processes next.

    Args:
        classifier: Any inductive `FewShotClassifier`: those keep what they learn in attributes.
    """
    # Attributes are the copy's own, parameters and the backbone are shared.
    return snapshot(copy.copy(classifier))


def samples(episode: Sequence[Any]) -> dict[str, Any]:
    """What `Collected.add` wants to know of an episode of easyfsl's `TaskSampler`.

    Args:
        episode: ``(support_images, support_labels, query_images, query_labels, true_class_ids)``.

    Returns:
        support and query pairs, and the classes' true numbers as the task's id.
    """
    if len(episode) != 5:
        raise ValueError(
            "episode must be (support_images, support_labels, query_images, query_labels, true_class_ids), "
            f"as TaskSampler's episodic_collate_fn makes it, got {len(episode)} parts."
        )
    images, labels, queries, answers, classes = episode
    return {"support": (images, labels), "query": (queries, answers), "id": tuple(classes)}
