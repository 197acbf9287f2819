"""Accuracy for time: settings are held against the full term, and what is known is not trained again."""

import json

import pytest
import torch
from torch.nn.functional import mse_loss
from trlearner.experiments.bench import accuracy
from trlearner.experiments.demo.comparison import Settings, make_arm, train_arms
from trlearner.experiments.demo.regression import Sinusoids
from trlearner.experiments.reporting.interval import paired

SMALL = Settings(steps=3, tasks=5, pool=10, test_tasks=6, test_queries=4)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    from contextlib import redirect_stdout
    from io import StringIO

    path, printed = tmp_path_factory.mktemp("accuracy") / "accuracy.json", StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(accuracy, "Settings", lambda **_: SMALL)
        patch.setattr(accuracy, "BATCHES", 2)
        accuracy.main(["--seeds", "1", "--steps", "3", "--json", str(path)])
        first = json.loads(path.read_text())["seeds"][0]
        printed.truncate(0)
        accuracy.main(["--seeds", "2", "--steps", "3", "--json", str(path)])
    return first, json.loads(path.read_text()), printed.getvalue()


@pytest.mark.full
def test_the_table_has_every_setting_and_known_seeds_stay(ran):
    first, written, printed = ran
    seeds = written["seeds"]
    assert len(seeds) == 2 and seeds[0] == first  # to the last digit of its times
    errors = [[seed[name]["test_mse"] for seed in seeds] for name in (accuracy.FULL, "top_k=4")]
    assert f" | {paired(*errors)} | " in printed
    assert [line.split(" | ")[0][2:] for line in printed.splitlines()[2:]] == list(
        accuracy.SETTINGS
    )


@pytest.mark.full
def test_arms_are_those_of_the_demo(ran):
    arms = [make_arm("", SMALL, 0, lam) for lam in (0.0, SMALL.lam)]
    train_arms(arms, SMALL, 0, lambda *_: None)
    generator = torch.Generator().manual_seed(accuracy.TEST_SEED)
    curves = Sinusoids.draw(SMALL.test_tasks, generator)
    test = curves.batch(SMALL.shots, SMALL.test_queries, generator)
    for arm, name in zip(arms, (accuracy.ALONE, accuracy.FULL), strict=True):
        assert ran[0][name]["test_mse"] == accuracy.error_on(arm.learner, test)


@pytest.mark.full
def test_chunks_change_nothing_and_cheaper_terms_something(ran):
    for seed in ran[1]["seeds"]:
        assert seed[accuracy.ALONE]["cosines"] is None
        assert seed["chunk_size=4"]["test_mse"] == pytest.approx(
            seed[accuracy.FULL]["test_mse"], 1e-5
        )
        for name in (accuracy.FULL, "chunk_size=4"):
            assert seed[name]["cosines"] == pytest.approx([1, 1], abs=1e-9)
        for name in ("queries=0.3", "top_k=4, queries=0.3"):
            assert all(-1 < cosine < 0.9999 for cosine in seed[name]["cosines"])


def test_the_gradient_of_the_term_is_that_of_models_mixed_by_hand():
    arm = make_arm("", SMALL, 0, lam=0.1)
    generator = torch.Generator().manual_seed(0)
    batch = Sinusoids.draw(4, generator).batch(5, 6, generator).to(torch.float64)
    found = accuracy.gradient_of_term(arm, batch)
    arm.regularizer.lam = 1.0
    weights = arm.regularizer(arm.learner, batch).weights
    # Nothing but the predictions depends on the learner: the encoder looks at inputs and targets.
    answers = arm.learner.adapt(batch.support, mse_loss).cross(batch.query.x)
    mixed = torch.einsum("ij,jiqo->iqo", weights, answers)
    term = mse_loss(mixed, batch.query.y)
    grads = torch.autograd.grad(term, list(arm.learner.parameters()))
    by_hand = torch.cat([grad.flatten() for grad in grads])
    torch.testing.assert_close(found, by_hand, rtol=1e-8, atol=1e-10)


def test_other_settings_are_not_taken_for_these(tmp_path):
    path = tmp_path / "accuracy.json"
    path.write_text(json.dumps({"settings": {"steps": 1}, "seeds": [{}]}))
    assert accuracy.known(path, {"steps": 1}) == [{}]
    assert accuracy.known(path, {"steps": 2}) == accuracy.known(None, {}) == []
