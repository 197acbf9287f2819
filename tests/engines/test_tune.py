"""Engine ``tune``: times, decides, says so, and leaves no trace."""

import time

import contracts
import pytest
import torch
from contracts import close
from torch import nn

import trlearner as tr
from trlearner.engines import choose, tune


class Clock:
    """Time that passes only where a test says so, however busy the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(tune, "time", made)
    return made


def test_the_fastest_wins_and_is_told(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    pauses = {"loop": 0.004, "batched": 0.001}
    assert tune.fastest(lambda name: clock.pass_by(pauses[name]), ("loop", "batched")) == "batched"
    told = capfd.readouterr().err
    assert told.startswith("trlearner: engine='tune' took 'batched': loop ") and "ms a step" in told


def test_an_engine_that_cannot_run_is_out() -> None:
    def run(name: str) -> None:
        if name != "loop":
            raise RuntimeError(f"{name} is broken\nsecond line")
        time.sleep(0.001)

    assert tune.fastest(run, ("loop", "batched")) == "loop"


def test_where_nothing_runs_the_reason_is_raised() -> None:
    def run(name: str) -> None:
        raise ValueError("the loss wants labels")

    with pytest.raises(ValueError, match="the loss wants labels"):
        tune.fastest(run, ("loop", "batched"))


def tuned(engine: str) -> tuple[tr.Learner, tr.TRLearner]:
    model = contracts.net()
    model.body = nn.Sequential(model.body, nn.BatchNorm1d(5)).double()
    encoder = tr.LabelledEncoder(None, dim=4, features=2, targets=3)
    g = torch.Generator().manual_seed(0)
    reg = tr.TRLearner(encoder=encoder, lam=0.5, queries=0.5, generator=g).double()
    return tr.MAML(model, lr=0.1, steps=2, engine=engine), reg


@pytest.mark.full
def test_trials_draw_nothing_change_nothing_and_the_choice_stays() -> None:
    torch.manual_seed(0)
    learner, reg = tuned("tune")
    before = {n: t.clone() for n, t in (learner.state_dict() | reg.state_dict()).items()}
    randomness = torch.get_rng_state()
    out = reg(learner, contracts.regression_batch())
    assert torch.equal(randomness, torch.get_rng_state())
    after = learner.state_dict() | reg.state_dict()
    drawn = "_extra_state"  # the queries of one step, as without trials
    assert all(torch.equal(before[n], t) for n, t in after.items() if n != drawn)
    assert all(p.grad is None for p in (*learner.parameters(), *reg.parameters()))
    torch.manual_seed(0)
    twin, regularizer = tuned("batched")
    expected = regularizer(twin, contracts.regression_batch())
    assert torch.equal(after[drawn], regularizer.state_dict()[drawn])
    close(out.loss, expected.loss)
    assert choose.settled(learner)
    assert reg(learner, contracts.regression_batch(seed=1)).engine == out.engine
    assert out.engine in ("loop", "batched")


def test_without_a_regularizer_an_untuned_learner_adapts_as_auto_does() -> None:
    learner, _ = tuned("tune")
    batch = contracts.regression_batch()
    assert learner.adapt(batch.support, nn.functional.mse_loss).engine == "batched"
    assert not choose.settled(learner)


def test_images_are_also_tried_channels_last() -> None:
    images = tr.MAML(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
    assert choose.candidates(images, masked=False) == ("loop", "channels_last", "batched")
    assert choose.candidates(images, masked=True) == ("loop", "channels_last")
    assert choose.candidates(tuned("tune")[0], masked=False) == ("loop", "batched")


def test_masked_tasks_that_couple_samples_run_in_a_loop_whatever_was_tuned() -> None:
    learner, reg = tuned("tune")
    choose.settle(learner, "batched")
    tasks = contracts.tasks_of(contracts.regression_batch())
    cut = [((x[: 5 - i], y[: 5 - i]), q) for i, ((x, y), q) in enumerate(tasks)]
    assert reg(learner, tr.TaskBatch.from_tasks(cut)).engine == "loop"
