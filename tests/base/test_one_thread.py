"""Threads that share modules: refused while another runs them, never a wrong result."""

import threading
from collections.abc import Callable
from typing import Any

import contracts
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import trlearner as tr
from trlearner.base import functional as one_thread
from trlearner.engines import blame

BATCH = contracts.regression_batch(tasks=3, support=2)
REFUSED = r"being run by another thread, .*copy\.deepcopy\(learner\)"


class Gate(nn.Module):
    """A model that waits in its forward while its gate is shut, as one that is slow would."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(contracts.INPUTS, 4).double()
        self.head = nn.Linear(4, contracts.OUTPUTS).double()
        self.open, self.inside = threading.Event(), threading.Event()
        self.open.set()

    def forward(self, x: Tensor) -> Tensor:
        self.inside.set()
        assert self.open.wait(60)
        return self.head(torch.tanh(self.body(x)))


def other_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs the function elsewhere; its result, or what it raised, is in the list once it is joined."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def adapted(learner: tr.Learner) -> Tensor:
    return learner.adapt(BATCH.support, mse_loss)(BATCH.query.x)


def regularizer(model: Gate) -> tr.TRLearner:
    return tr.TRLearner(tr.InputEncoder(model.body, dim=4), lam=0.5).double()


ENTRANCES: dict[str, Callable[[tr.Learner, Gate], Any]] = {
    "adapt": lambda learner, model: learner.adapt(BATCH.support, mse_loss),
    "state": lambda learner, model: learner.state(),
    "forward": lambda learner, model: learner(BATCH.support.x[0]),
    "another learner": lambda learner, model: adapted(tr.MAML(model, 0.1, 1, engine="loop")),
    "a part of the model": lambda learner, model: adapted(tr.ProtoNet(model.body, engine="loop")),
    "trlearner": lambda learner, model: regularizer(model)(learner, BATCH),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_second_thread_is_refused_while_one_is_inside(entrance: str) -> None:
    model = Gate()
    learner = tr.MAML(model, 0.1, 1, engine="loop")
    expected = adapted(learner)
    before = dict(model.named_parameters())
    model.inside.clear()
    model.open.clear()
    thread, results = other_thread(lambda: adapted(learner))
    try:
        assert model.inside.wait(60)
        with pytest.raises(RuntimeError, match=REFUSED):
            ENTRANCES[entrance](learner, model)
    finally:
        model.open.set()
        thread.join()
    contracts.close(results[0], expected, 1e-12)
    contracts.close(adapted(learner), expected, 1e-12)
    assert all(p is before[name] for name, p in model.named_parameters())
    assert one_thread._running == {}


def test_adapted_models_are_refused_as_well() -> None:
    model = Gate()
    models = tr.MAML(model, 0.1, 1, engine="loop").adapt(BATCH.support, mse_loss)
    model.inside.clear()
    model.open.clear()
    thread, results = other_thread(lambda: models(BATCH.query.x))
    try:
        assert model.inside.wait(60)
        with pytest.raises(RuntimeError, match=REFUSED):
            models(BATCH.query.x)
    finally:
        model.open.set()
        thread.join()
    assert isinstance(results[0], Tensor)


def test_other_modules_are_free() -> None:
    model, free = Gate(), tr.MAML(Gate(), 0.1, 1, engine="loop")
    model.open.clear()
    thread, _ = other_thread(lambda: adapted(tr.MAML(model, 0.1, 1, engine="loop")))
    try:
        assert model.inside.wait(60)
        assert adapted(free).isfinite().all()
    finally:
        model.open.set()
        thread.join()


def test_an_error_sets_the_modules_free() -> None:
    model = Gate()
    learner = tr.MAML(model, 0.1, 1, engine="loop")
    expected = adapted(learner)
    wrong = torch.ones(3, 2, contracts.INPUTS + 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="does not fit the model"):
        learner.adapt((wrong, BATCH.support.y), mse_loss)
    assert one_thread._running == {}
    thread, results = other_thread(lambda: adapted(learner))
    thread.join()
    contracts.close(results[0], expected, 1e-12)


def test_what_another_thread_runs_is_not_taken_for_a_failed_call() -> None:
    model = Gate()
    learner = tr.MAML(model, 0.1, 1, engine="loop")
    model.open.clear()
    calls = blame._Calls(learner)
    with calls.recorded():
        thread, _ = other_thread(lambda: adapted(learner))
        assert model.inside.wait(60)
        running = list(calls.running)
        model.open.set()
        thread.join()
    assert running == []


def test_the_backward_pass_may_run_in_another_thread() -> None:
    """As on a GPU, where autograd computes inner steps and chunks again in a thread of its own."""
    model = Gate()
    learner = tr.MAML(model, 0.1, 2, engine="loop", recompute=True)
    reg = tr.TRLearner(tr.InputEncoder(model.body, dim=4), lam=0.5, chunk_size=1).double()
    expected = contracts.gradients(reg(learner, BATCH).loss, learner)
    loss = reg(learner, BATCH).loss
    thread, results = other_thread(lambda: contracts.gradients(loss, learner))
    thread.join()
    for name, gradient in expected.items():
        contracts.close(results[0][name], gradient, 1e-12)


def test_threads_that_take_turns_compute_what_one_does() -> None:
    """Whatever the threads' order: a result is right, or it is refused."""
    model = Gate()
    learner = tr.MAML(model, 0.1, 1, engine="loop")
    expected = adapted(learner)
    started = [other_thread(lambda: [_or_refused(learner) for _ in range(10)]) for _ in range(3)]
    for thread, results in started:
        thread.join()
        for found in results[0]:
            if found is not None:
                contracts.close(found, expected, 1e-12)
    contracts.close(adapted(learner), expected, 1e-12)


def _or_refused(learner: tr.Learner) -> Tensor | None:
    try:
        return adapted(learner)
    except RuntimeError as error:
        if "another thread" not in str(error):
            raise
        return None
