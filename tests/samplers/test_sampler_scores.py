"""Scores against loops in float64, and what no score may depend on."""

import contracts
import pytest
import reference_scores as truth
import torch
from hypothesis import given
from hypothesis import strategies as st

import trlearner as tr
from trlearner.engines.choose import ENGINES
from trlearner.samplers import scores
from trlearner.samplers.evidence import Evidence, gather, norms
from trlearner.samplers.scores import SCORES, score_tasks
from trlearner.tasks.coding import leverage, unit_rows

EXACT = 1e-9
WAYS = 3


def problem(seed: int, samples: int, width: int, kind: str, masked: bool) -> Evidence:
    g = torch.Generator().manual_seed(seed)
    tasks = 3
    x = torch.randn(tasks, samples, width, generator=g, dtype=torch.float64)
    if kind == "labels":
        y = torch.randint(0, WAYS, (tasks, samples), generator=g)
    else:
        y = torch.randn(tasks, samples, 2, generator=g, dtype=torch.float64).mul(2).round()
    mask = None
    if masked:
        mask = torch.rand(tasks, samples, generator=g) < 0.7
        mask[:, 0] = True
    return Evidence(x, y, mask, WAYS if kind == "labels" else None, torch.zeros(tasks))


def by_loop(name: str, e: Evidence, literal: bool = False, sigma2: float = 0.5, bins: int = 3):
    found = []
    for i in range(len(e.features)):
        mask = None if e.mask is None else e.mask[i]
        rows = truth.kept(e.features[i], mask)
        columns = truth.members(e.targets[i], mask, e.ways, bins)
        one = {
            "diversity": (truth.diversity, rows, sigma2, literal),
            "entropy": (truth.entropy, rows, columns, sigma2, literal),
            "compactness": (truth.compactness, rows, columns),
            "separability": (truth.separability, rows, columns),
            "enrichment": (truth.enrichment, rows),
        }[name]
        found.append(one[0](*one[1:]))
    return torch.tensor(found, dtype=torch.float64)


PURE = ("diversity", "entropy", "compactness", "separability", "enrichment")
ANY = st.builds(
    problem,
    seed=st.integers(0, 10_000),
    samples=st.integers(1, 7),
    width=st.integers(1, 7),
    kind=st.sampled_from(["labels", "numbers"]),
    masked=st.booleans(),
)


@pytest.mark.full
@pytest.mark.parametrize("name", PURE)
@given(e=ANY)
def test_scores_are_what_the_loop_says(name: str, e: Evidence) -> None:
    contracts.close(SCORES[name](e), by_loop(name, e), EXACT)


@pytest.mark.full
@given(e=ANY, sigma2=st.sampled_from([0.1, 0.5, 2.0]))
def test_the_published_formula_is_what_the_loop_says(e: Evidence, sigma2: float) -> None:
    for literal in (True, False):
        found = scores.diversity(e, literal=literal, sigma2=sigma2)
        contracts.close(found, by_loop("diversity", e, literal, sigma2), EXACT)
        found = scores.entropy(e, bins=2, literal=literal, sigma2=sigma2)
        contracts.close(found, by_loop("entropy", e, literal, sigma2, bins=2), EXACT)


@pytest.mark.full
@given(e=ANY, seed=st.integers(0, 100))
def test_tasks_are_scored_on_their_own(e: Evidence, seed: int) -> None:
    order = torch.randperm(len(e.features), generator=torch.Generator().manual_seed(seed))
    moved = Evidence(
        e.features[order],
        e.targets[order],
        None if e.mask is None else e.mask[order],
        e.ways,
        e.gradient_norm[order],
    )
    for name in PURE:
        contracts.close(SCORES[name](moved), SCORES[name](e)[order], EXACT)


@pytest.mark.full
@given(e=ANY, seed=st.integers(0, 100))
def test_the_order_of_samples_does_not_matter(e: Evidence, seed: int) -> None:
    order = torch.randperm(e.features.shape[1], generator=torch.Generator().manual_seed(seed))
    mask = None if e.mask is None else e.mask[:, order]
    moved = Evidence(e.features[:, order], e.targets[:, order], mask, e.ways, e.gradient_norm)
    for name in PURE:
        contracts.close(SCORES[name](moved), SCORES[name](e), EXACT)


@pytest.mark.full
@given(e=ANY, more=st.integers(1, 4))
def test_padding_does_not_matter(e: Evidence, more: int) -> None:
    tasks, samples = e.features.shape[:2]
    mask = torch.ones(tasks, samples, dtype=torch.bool) if e.mask is None else e.mask
    padded = Evidence(
        torch.cat([e.features, torch.full_like(e.features[:, :1], 1e6).expand(-1, more, -1)], 1),
        torch.cat([e.targets, e.targets[:, :1].expand(-1, more, *e.targets.shape[2:])], 1),
        torch.cat([mask, mask.new_zeros(tasks, more)], 1),
        e.ways,
        e.gradient_norm,
    )
    for name in PURE:
        contracts.close(SCORES[name](padded), SCORES[name](e), EXACT)


@given(e=ANY)
def test_neither_size_nor_scale_counts(e: Evidence) -> None:
    twice = torch.cat([e.features, e.features], 1)
    mask = None if e.mask is None else torch.cat([e.mask, e.mask], 1)
    larger = e._replace(features=1e3 * twice, mask=mask)
    contracts.close(scores.diversity(larger), scores.diversity(e), 1e-6)


@pytest.mark.parametrize(("samples", "width"), [(4, 9), (9, 4)])
def test_leverage_is_a_derivative_of_the_coding_rate(samples: int, width: int) -> None:
    e = problem(0, samples, width, "labels", masked=True)
    found = leverage(unit_rows(e.features, e.mask))
    for i in range(len(found)):
        wanted = torch.tensor(truth.leverage(truth.kept(e.features[i], e.mask[i]), 0.5))
        contracts.close(found[i][e.mask[i]], wanted.double(), 1e-6)
        assert (found[i][~e.mask[i]] == 0).all()


def test_half_precision_is_scored_in_single() -> None:
    e = problem(0, 5, 3, "labels", masked=False)
    found = scores.diversity(e._replace(features=e.features.half()))
    assert found.dtype == torch.float32
    assert torch.allclose(found, scores.diversity(e).float(), atol=1e-2)


def test_labels_need_the_number_of_classes() -> None:
    e = problem(0, 3, 2, "labels", masked=False)._replace(ways=None)
    with pytest.raises(ValueError, match=r"got ways=None: build TaskBatch\(..., ways=5\)"):
        scores.entropy(e)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("name", contracts.LEARNERS)
def test_difficulty_is_the_first_gradient_of_the_adaptation(
    name: str, engine: str, steps: int
) -> None:
    learner = contracts.learner(name, contracts.net(), engine, steps=steps)
    batch, loss_fn = contracts.regression_batch(), torch.nn.functional.mse_loss
    found = gather(ENGINES[engine], learner, learner.state(), batch.support, loss_fn, None)
    for i in range(len(batch)):
        wanted = 0.0
        if steps > 0:
            x, y = batch.support.real(i)
            state = learner.state()
            start = {n: t.detach().requires_grad_() for n, t in learner.start(state).items()}
            loss = loss_fn(learner.predict(state, start, learner.embed(state, x)), y)
            wanted = truth.difficulty(list(torch.autograd.grad(loss, list(start.values()))))
        assert found.gradient_norm[i].item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_gathering_evidence_leaves_the_learner_as_it_is(engine: str) -> None:
    learner = contracts.learner("maml", contracts.net(), engine)
    batch, mse = contracts.regression_batch(), torch.nn.functional.mse_loss
    plain = learner.adapt(batch.support, mse)(batch.query.x)
    gather(ENGINES[engine], learner, learner.state(), batch.support, mse, None)
    assert torch.equal(learner.adapt(batch.support, mse)(batch.query.x), plain)
    assert all(p.grad is None for p in learner.parameters())


def test_a_score_of_ones_own() -> None:
    tr.samplers.register_score("first input", lambda e: e.features[:, 0, 0])
    try:
        e = problem(0, 4, 2, "numbers", masked=False)
        found = score_tasks(("first input", "diversity"), e)
        assert found.shape == (3, 2)
        assert torch.equal(found[:, 0], e.features[:, 0, 0].float())
        with pytest.raises(ValueError, match="name must be new, got 'first input'; there are"):
            tr.samplers.register_score("first input", lambda e: e.gradient_norm)
        SCORES["broken"] = lambda e: e.features
        with pytest.raises(
            ValueError, match=r"'broken' must return one number a task.* \[3\], got \[3, 4, 2\]"
        ):
            score_tasks(("broken",), e)
    finally:
        del SCORES["first input"]
        SCORES.pop("broken", None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_the_norm_of_gradients_in_half_precision(dtype: torch.dtype, size: float):
    g = torch.tensor([[3.0, 4.0], [0.0, 1.0]]) * size
    found = norms([g.to(dtype)])
    torch.testing.assert_close(found, torch.tensor([5.0, 1.0]) * size, rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("size", [1e20, 1e30])
@pytest.mark.parametrize("name", PURE)
def test_features_of_any_size_score_alike(name: str, size: float):
    e = problem(0, 5, 4, "labels", masked=True)
    found, wanted = (SCORES[name](e._replace(features=s * e.features.float())) for s in (size, 1.0))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["entropy", "compactness", "separability"])
@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_a_task_without_samples_scores_zero(name: str, kind: str):
    e = problem(0, 4, 3, kind, masked=False)
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    for x, y, mask in (
        (e.features, e.targets, nothing),
        (e.features[:, :0], e.targets[:, :0], None),
    ):
        empty = e._replace(features=x, targets=y, mask=mask)
        assert SCORES[name](empty).tolist() == [0.0] * 3


@pytest.mark.unchecked
@pytest.mark.parametrize("value", [0, -1, 2.0])
def test_numbers_of_groups_must_be_whole(value):
    e = problem(0, 4, 3, "numbers", masked=False)
    with pytest.raises(ValueError, match="bins must be a whole number of at least 1, got"):
        scores.entropy(e, bins=value)
    with pytest.raises(ValueError, match="ways must be a whole number of at least 1, got"):
        scores.entropy(e._replace(targets=torch.zeros(3, 4, dtype=torch.long), ways=value))


@pytest.mark.parametrize("sigma2", [0.0, -1.0, float("nan")])
def test_the_noise_must_have_a_variance(sigma2: float):
    e = problem(0, 4, 3, "labels", masked=False)
    for score in (
        lambda: scores.diversity(e, sigma2=sigma2),
        lambda: scores.entropy(e, sigma2=sigma2),
    ):
        with pytest.raises(ValueError, match="sigma2 must be a number above 0, got"):
            score()


def test_a_norm_of_nothing_is_refused():
    with pytest.raises(ValueError, match="gradients must hold at least one tensor"):
        norms([])
