"""`Adapted`: a batch of adapted models is asked in one way, whatever engine made it."""

from __future__ import annotations

import contracts
import pytest
import torch
from contracts import BATCHED_FIRST, close
from torch.nn.functional import mse_loss

import trlearner as tr
from trlearner.engines.adapted import Embedded
from trlearner.tasks.rows import Rows

EXACT = 1e-12
LEARNERS = ["maml", "anil", *contracts.later("metasgd", "tnet", "bayes")]


def adapted_models(name: str, engine: str) -> tuple[tr.Adapted, tr.TaskBatch]:
    batch = contracts.regression_batch()
    learner = contracts.learner(name, contracts.net(), engine)
    return learner.adapt(batch.support, mse_loss), batch


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("name", LEARNERS)
def test_each_way_to_ask_says_what_one_model_says_alone(name: str, engine: str) -> None:
    models, batch = adapted_models(name, engine)
    x, learner, state = batch.query.x, models.learner, models.state
    tasks = len(models)
    fast = [{n: t[i] for n, t in models.fast.items()} for i in range(tasks)]
    wanted = torch.stack(
        [
            torch.stack(
                [learner.predict(state, fast[j], learner.embed(state, x[i])) for i in range(tasks)]
            )
            for j in range(tasks)
        ]
    )
    everyone = range(tasks)
    close(models(x), wanted[everyone, everyone], EXACT)
    close(models.predict(x), wanted[everyone, everyone], EXACT)
    close(models.cross(x), wanted, EXACT)
    close(models.predict(models.embed(batch.query)), wanted[everyone, everyone], EXACT)
    close(models.cross(models.embed(batch.query)), wanted, EXACT)
    named = torch.tensor([[1, 0, 3, 2], [2, 2, 0, 0]])
    close(models.cross(x, models=named), wanted[named, torch.arange(tasks)], EXACT)
    close(models[1:3].predict(x[1:3]), wanted[[1, 2], [1, 2]], EXACT)
    close(models[torch.tensor([3, 0])].predict(x[[3, 0]]), wanted[[3, 0], [3, 0]], EXACT)
    assert len(models[1:3]) == 2
    losses = [mse_loss(wanted[i, i], batch.query.y[i]) for i in everyone]
    close(models.losses(mse_loss, models.predict(x), batch.query), torch.stack(losses), EXACT)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_dense_models_are_the_same_in_one_piece(engine: str) -> None:
    models, batch = adapted_models("maml", engine)
    assert isinstance(models.fast, Rows) == (engine == "loop")
    dense = models.dense()
    assert isinstance(dense.fast, dict)
    close(dense.predict(batch.query.x), models.predict(batch.query.x), EXACT)


def test_what_is_embedded_is_asked_unchecked() -> None:
    """Within a step the samples were checked before; outside of it they are checked."""
    models, batch = adapted_models("maml", "batched")
    features = models.embed(batch.query).features
    assert models.predict(Embedded(features, None)).shape == batch.query.y.shape
    with pytest.raises(ValueError, match=r"x must be \[tasks, queries, ...\] with tasks = 4, got"):
        models.predict(batch.query.x[:2])
