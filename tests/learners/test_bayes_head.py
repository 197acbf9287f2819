"""`BayesHead` against the formula in weight space, and what it refuses (contracts: test_learners.py)."""

import functools
from collections.abc import Callable

import contracts
import pytest
import reference
import torch
from contracts import BATCHED_FIRST, EAGER, OUTPUTS, close, cross_entropy, later
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import trlearner as tr
from trlearner.learners.bayes_head import posterior_weights

TIGHT = 1e-9


def problem(name: str) -> tuple[tr.TaskBatch, tr.types.LossFn]:
    if name == "bayes classes":
        return contracts.class_batch(tasks=3), cross_entropy
    return contracts.regression_batch(tasks=3), mse_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("samples", [1, 3, 4, 9])
def test_weights_are_those_of_the_precision_form(samples: int) -> None:
    """Fewer samples than features, as many, and more: each is solved in its own way."""
    h, y, W0 = draw(samples, 3), draw(samples, 2, seed=1), draw(4, 2, seed=2)
    C, noise = torch.eye(4).double() + 0.3 * draw(4, 4, seed=3), torch.tensor(0.2).double()
    phi = torch.cat([h, torch.ones(samples, 1).double()], 1)
    found = posterior_weights(phi, y, W0, C, noise)
    close(found, reference.bayes_weights(h, y, W0, C, noise), TIGHT)
    more = torch.cat([phi, torch.full((6, 4), torch.nan).double()])
    mask = torch.arange(samples + 6) < samples
    padded = torch.cat([y, torch.full((6, 2), torch.nan).double()])
    close(posterior_weights(more, padded, W0, C, noise, mask), found, TIGHT)


def test_the_prior_and_the_labels_are_the_two_ends() -> None:
    phi, y, W0 = draw(3, 5), draw(3, 2, seed=1), draw(5, 2, seed=2)
    C = torch.eye(5).double()
    close(posterior_weights(phi, y, W0, C, torch.tensor(1e12)), W0)
    exact = posterior_weights(phi, y, W0, C, torch.tensor(1e-10))
    close(phi @ exact, y, 1e-7)


@pytest.mark.parametrize("samples", [3, 7])
def test_derivatives_of_both_orders_equal_finite_differences(samples: int) -> None:
    values = [draw(samples, 4), draw(samples, 2, seed=1), draw(4, 2, seed=2), draw(4, 4, seed=3)]
    values.append(torch.tensor(0.5).double())
    for value in values:
        value.requires_grad_()
    mask = torch.arange(samples) < samples - 1

    def weights(*given: Tensor) -> Tensor:
        return posterior_weights(*given, mask)

    assert torch.autograd.gradcheck(weights, values)
    assert torch.autograd.gradgradcheck(weights, values)


@pytest.mark.parametrize("samples", [5, 40])
def test_single_precision_is_as_good_as_double(samples: int) -> None:
    """Nearly equal features and little noise, as trained networks have them."""
    base = draw(1, 40).relu()
    phi = (3 * base + 0.01 * draw(samples, 40, seed=1)).float()
    y, W0, C = draw(samples, 1, seed=2).float(), draw(40, 1, seed=3).float(), torch.eye(40)
    noise = torch.tensor(1e-3)
    single = posterior_weights(phi, y, W0, C, noise)
    double = posterior_weights(*(t.double() for t in (phi, y, W0, C, noise)))
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    close(single.double(), double, 1e-6)


def test_features_that_explode_leave_finite_weights() -> None:
    phi, one = 1e9 * torch.ones(3, 2), torch.eye(2)
    found = posterior_weights(phi, torch.ones(3, 1), torch.zeros(2, 1), one, torch.tensor(1e-8))
    assert found.isfinite().all()


@functools.cache
def meta_step(name: str) -> tuple[tr.BayesHead, Callable[[], Tensor], dict[str, Tensor]]:
    """A learner, its meta-loss, and finite differences, which are the same on every engine."""
    batch, loss_fn = problem(name)
    learner = contracts.learner(name, contracts.net(hidden=3), "batched")
    encoder = tr.InputEncoder(learner.model.body, dim=3)
    reg = tr.TRLearner(encoder, lam=0.7, loss_fn=loss_fn).double()

    def loss() -> Tensor:
        return reg(learner, batch).loss

    with torch.no_grad():
        differences = {key: contracts.slopes(loss, p) for key, p in learner.named_parameters()}
    return learner, loss, differences


@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("name", ["bayes", "bayes classes"])
def test_meta_gradients_equal_finite_differences(engine: str, name: str) -> None:
    learner, loss, differences = meta_step(name)
    learner.engine = engine
    found = contracts.gradients(loss(), learner)
    for key, expected in differences.items():
        close(contracts.along(found[f"0.{key}"]), expected, 1e-6)


@pytest.mark.parametrize("engine", EAGER)
def test_the_body_runs_once_per_sample(engine: str) -> None:
    batch, loss_fn = problem("bayes")
    learner = contracts.learner("bayes", contracts.net(), engine)
    reg = tr.TRLearner(tr.LabelledEncoder(None, dim=4), loss_fn=loss_fn).double()
    reg(learner, batch)
    seen = []
    learner.model.body.register_forward_hook(lambda module, inputs, _: seen.append(len(inputs[0])))
    reg(learner, batch)
    assert sum(seen) == len(batch) * (contracts.SUPPORT + contracts.QUERIES)


def test_steps_change_nothing() -> None:
    batch, loss_fn = problem("bayes")
    learner = contracts.learner("bayes", contracts.net(), "batched")
    one, other = (learner.adapt(batch.support, loss_fn, steps=steps) for steps in (0, 300))
    close(one(batch.query.x), other(batch.query.x), 0.0)


@pytest.mark.parametrize("engine", ["batched", *later("loop", "traced")])
def test_renumbering_classes_renumbers_logits(engine: str) -> None:
    batch, loss_fn = problem("bayes classes")
    learner = contracts.learner("bayes classes", contracts.net(), engine)
    order = torch.tensor([2, 0, 1])
    support = tr.Samples(batch.support.x, order[batch.support.y], ways=OUTPUTS)
    there = learner.adapt(batch.support, loss_fn)(batch.query.x)
    close(learner.adapt(support, loss_fn)(batch.query.x)[..., order], there, TIGHT)


def test_a_batch_need_not_say_how_many_classes_there_are() -> None:
    batch, loss_fn = problem("bayes classes")
    learner = contracts.learner("bayes classes", contracts.net(), "batched")
    silent = tr.Samples(batch.support.x, batch.support.y)
    found, expected = (learner.adapt(s, loss_fn)(batch.query.x) for s in (silent, batch.support))
    close(found, expected, 0.0)
    assert found.shape[-1] == OUTPUTS


@pytest.mark.unchecked  # a hundred steps, each like the first
def test_it_learns_lines_from_two_points() -> None:
    """Slope and intercept are two weights: nothing but the noise keeps it from the truth."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    learner = tr.BayesHead(nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 4)), dim=4)
    optimizer = torch.optim.Adam(learner.parameters(), lr=2e-2)

    def loss() -> Tensor:
        slope, intercept = torch.randn(2, 16, 1, 1, generator=g)
        x = 2 * torch.rand(16, 12, 1, generator=g) - 1
        y = slope * x + intercept
        return mse_loss(learner.adapt((x[:, :2], y[:, :2]), mse_loss)(x[:, 2:]), y[:, 2:])

    before = torch.stack([loss() for _ in range(10)]).mean()
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert torch.stack([loss() for _ in range(10)]).mean() < 0.05 * before


@pytest.mark.unchecked
def test_wrong_use_is_told() -> None:
    numbers, labels = contracts.regression_batch().support, contracts.class_batch().support
    silent = tr.Samples(labels.x, labels.y)

    def head(**options: object) -> tr.BayesHead:
        return tr.BayesHead(contracts.net(), **{"dim": 3, "outputs": 3, **options}).double()

    for make, match in [
        (lambda: tr.BayesHead(abs), "model must be an nn.Module"),
        (lambda: head(ways=1), "ways must be a whole number of at least 2, or None"),
        (lambda: head(ways=5), "outputs must be left at 1 where ways=5"),
        (lambda: head(dim=4).adapt(numbers, mse_loss), "must return 4 features .* got 3. Pass .*dim=3"),
        (
            lambda: head(outputs=1).adapt(numbers, mse_loss),
            r"BayesHead\(outputs=1\) needs numbers .* got torch.float64 \[5, 3\]. Pass outputs=",
        ),
        (lambda: head().adapt(labels, cross_entropy), r"Pass BayesHead\(..., ways=3\)"),
        (lambda: head().adapt(silent, cross_entropy), r"got torch.int64 \[6\].* pass ways= for class"),
        (
            lambda: head(outputs=1, ways=3).adapt(numbers, mse_loss),
            r"BayesHead\(ways=3\) needs integer labels .* Leave ways out for regression",
        ),
        (lambda: head(outputs=1, ways=5).adapt(labels, cross_entropy), r"ways=5\) was given .* ways=3"),
    ]:  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=match):
            make()
