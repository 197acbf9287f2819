"""`TaskMemory` by the Gaussian rule: against loops, leave-one-out, deviations, and what it refuses."""

from __future__ import annotations

import io
import math

import contracts
import pytest
import reference
import torch
from contracts import BATCHED_FIRST, LEARNERS, close
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import trlearner as tr

EXACT = 1e-9
K, H, NOISE, SHARE = 3, 0.7, 0.3, 0.6
SETTINGS = {"neighbours": K, "spread": H, "noise": NOISE, "share": SHARE}


def waves(
    tasks: int, seed: int, samples: int = 40, shots: int = 5, noise: float = 0.05
) -> tr.TaskBatch:
    """Mixtures of sine and cosine, whose models a linear head can learn."""
    g = torch.Generator().manual_seed(seed)
    x = 6 * torch.rand(tasks, samples, 1, generator=g) - 3
    a, b = torch.randn(2, tasks, 1, 1, generator=g)
    y = a * torch.sin(x) + b * torch.cos(x) + noise * torch.randn(x.shape, generator=g)
    return tr.TaskBatch((x[:, :shots], y[:, :shots]), (x[:, shots:], y[:, shots:]))


class Basis(nn.Module):
    """Four waves with a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([torch.sin(x), torch.cos(x), torch.sin(2 * x), x], -1))


def learner(steps: int = 1) -> tr.MAML:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tr.MAML(Basis(), lr=0.1, steps=steps, engine="batched")


def memory_of_waves(tasks: int = 40, **options: object) -> tr.TaskMemory:
    memory = tr.TaskMemory(learner(), **options)
    memory.remember(waves(tasks, 0), steps=100)
    return memory


def answer_by_loops(
    predict, own, others, support, x: Tensor, kernel=None, b: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(1 - share) own + share P of one task, and sqrt(Var + σ² + (1 - share)² (own - P)²)."""
    (xs, y), F = support, [predict(model, support[0]).detach() for model in others]
    near = reference.nearest_models(F, y, K)
    mine, on_support = predict(own, x).detach(), predict(own, xs).detach()
    answers, deviations = [], []
    for o in range(y.shape[1]):
        kernels, priors = None, None
        if kernel is not None:
            itself = [b * kernel(x[q : q + 1], x[q : q + 1])[0, 0] for q in range(len(x))]
            kernels = b * kernel(xs, xs), b * kernel(x, xs), itself
            priors = on_support[:, o], mine[:, o]
        f = [predict(others[j], x).detach()[:, o] for j in near]
        _, mean, variance = reference.remembered(
            [F[j][:, o] for j in near], f, y[:, o], H, NOISE, priors, kernels
        )
        answers.append((1 - SHARE) * mine[:, o] + SHARE * mean)
        gap = (1 - SHARE) * (mine[:, o] - mean)
        deviations.append((variance + NOISE + gap**2).sqrt())
    return torch.stack(answers, 1), torch.stack(deviations, 1)


def rbf(a: Tensor, b: Tensor) -> Tensor:
    return (-torch.cdist(a, b).square()).exp()


@pytest.mark.parametrize("kernel", [None, rbf])
@pytest.mark.parametrize("engine", BATCHED_FIRST)
@pytest.mark.parametrize("name", [*LEARNERS, "bayes"])
def test_answers_and_deviations_are_the_formula(name: str, engine: str, kernel) -> None:
    known, new = contracts.regression_batch(1, tasks=5), contracts.regression_batch(2)
    made = contracts.learner(name, contracts.net(), engine)
    memory = tr.TaskMemory(made, mse_loss, chunk_size=2, kernel=kernel, **SETTINGS)
    memory.kernel_scale = 0.8
    memory.remember(known, steps=2, held_out=0.0)
    recalled = memory.adapt(new.support)
    answers, deviations = recalled(new.query, std=True)
    close(recalled(new.query), answers, 0.0)
    adapt_task, predict, _ = contracts.learner_by_formula(
        name, made, dict(made.model.named_parameters()), mse_loss, first_order=False
    )
    others = []
    for j in range(len(known)):
        (sx, sy), (qx, qy) = known.support.real(j), known.query.real(j)
        others.append(adapt_task((torch.cat([sx, qx]), torch.cat([sy, qy]))))
    for i in range(len(new)):
        support, x = new.support.real(i), new.query.real(i)[0]
        expected = answer_by_loops(predict, adapt_task(support), others, support, x, kernel, 0.8)
        close(answers[i], expected[0], EXACT)
        close(deviations[i], expected[1], EXACT)
    assert recalled.models.shape == (len(new), K)
    sums = recalled.weights.sum(1)
    close(sums, torch.zeros_like(sums) if kernel else torch.ones_like(sums), EXACT)


def test_masked_samples_count_for_nothing() -> None:
    known, new = contracts.regression_batch(1, tasks=5), contracts.regression_batch(2)
    memory = tr.TaskMemory(contracts.learner("maml", contracts.net(), "batched"), **SETTINGS)
    memory.remember(known, steps=2, held_out=0.0)
    mask = torch.arange(new.support.x.shape[1]).expand(len(new), -1) < 3
    masked = memory.adapt(tr.Samples(new.support.x, new.support.y, mask))(new.query, std=True)
    short = memory.adapt((new.support.x[:, :3], new.support.y[:, :3]))(new.query, std=True)
    for one, other in zip(masked, short, strict=True):
        close(one, other, 1e-12)


def test_the_default_noise_is_a_share_of_the_labels_variance() -> None:
    known, new = waves(10, 0), waves(3, 1)
    one, other = tr.TaskMemory(learner()), tr.TaskMemory(learner())
    for part in (slice(0, 4), slice(4, None)):
        one.remember(known[part], steps=20, held_out=0.0)
    other.remember(known, steps=20, held_out=0.0)
    y = torch.cat([known.support.y, known.query.y], 1).double()
    other.noise = 0.01 * float(y.var(correction=0))
    close(one.adapt(new.support)(new.query), other.adapt(new.support)(new.query), 1e-6)


def test_it_takes_most_of_the_error_off() -> None:
    memory, new = memory_of_waves(), waves(100, 3)
    own = mse_loss(memory.learner.adapt(new.support, mse_loss)(new.query), new.query.y)
    untuned = mse_loss(memory.adapt(new.support)(new.query), new.query.y)
    tuned = memory.tune()
    best = mse_loss(memory.adapt(new.support)(new.query), new.query.y)
    assert untuned < 0.1 * own and best < 1.1 * untuned
    assert tuned.loss < 0.1 * tuned.alone and tuned.tasks == 40
    assert memory.tune(waves(50, 4)).loss == pytest.approx(float(best), rel=0.5)


def test_leave_one_out_is_a_loop_of_memories_without_the_task() -> None:
    known = contracts.regression_batch(1, tasks=6)
    made = contracts.learner("maml", contracts.net(), "batched")
    memory = tr.TaskMemory(made, mse_loss, **SETTINGS)
    memory.remember(known, steps=3, held_out=0.0)
    tuned = memory.tune()
    setting = {
        "neighbours": tuned.neighbours,
        "spread": tuned.spread,
        "noise": memory.noise,
        "share": 1.0,
    }
    losses = []
    for i in range(len(known)):
        rest = tr.TaskMemory(made, mse_loss, **setting)
        rest.remember(known[[j for j in range(6) if j != i]], steps=3, held_out=0.0)
        recalled = rest.adapt(known[[i]].support)(known[[i]].query)
        losses.append(float(mse_loss(recalled, known[[i]].query.y)))
    from trlearner.memory.leave_one_out import leave_one_out
    from trlearner.memory.remembered import own_models
    from trlearner.memory.tune import Trier

    trier = Trier(
        memory._kept,
        mse_loss,
        lambda support, places: own_models(made, support, mse_loss, None, None),
        True,
        leave_one_out(memory._kept, None),
        2,
    )
    trial = trier.gaussian(None, memory._labels.variance(), 1.0)
    unit = memory._labels.variance()
    (row,) = [
        i
        for i, s in enumerate(trial.settings)
        if (s.share, s.spread) == (1.0, tuned.spread)
        and s.neighbours == tuned.neighbours
        and torch.allclose(s.noise * unit, torch.as_tensor(memory.noise, dtype=torch.float64))
    ]
    close(trial.losses[row], torch.tensor(losses, dtype=torch.float64), EXACT)


def test_leave_one_out_of_samples_needs_to_know_the_shots() -> None:
    memory = tr.TaskMemory(learner())
    known = waves(20, 0)
    memory.remember(tr.Samples(known.query.x, known.query.y), steps=100)
    with pytest.raises(
        ValueError, match="shots must say how many samples of a remembered task are"
    ):
        memory.tune()
    assert memory.tune(shots=5).share == 1.0


def test_others_that_do_not_help_are_not_asked() -> None:
    """New tasks lie somewhere else altogether, and own models know them."""
    memory = tr.TaskMemory(learner(steps=60))
    memory.remember(waves(20, 0), steps=20)
    new = waves(30, 1)
    far = new.replace(*(tr.Samples(s.x, s.y + 50 * s.x) for s in (new.support, new.query)))
    tuned = memory.tune(far)
    assert (memory.share, tuned.loss) == (0.0, tuned.alone)
    with pytest.raises(ValueError, match="std=True needs a share above 0"):
        memory.adapt(far.support)(far.query, std=True)


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_a_tuned_band_covers_what_it_says(noise: float) -> None:
    memory = tr.TaskMemory(learner())
    memory.remember(waves(60, 0, noise=noise), steps=100)
    memory.tune()
    new = waves(200, 5, noise=noise)
    answers, deviations = memory.adapt(new.support)(new.query, std=True)
    covered = ((answers - new.query.y).abs() < 1.96 * deviations).float().mean()
    assert 0.9 < covered < 0.98


def test_class_labels_are_mixed_by_softmax_under_either_rule() -> None:
    known, new = contracts.class_batch(1, tasks=5), contracts.class_batch(2)
    made = contracts.learner("anil", contracts.net(), "batched")
    answers = []
    for rule in ("gaussian", "softmax"):
        memory = tr.TaskMemory(made, contracts.cross_entropy, rule=rule)
        memory.remember(known)
        recalled = memory.adapt(new.support)
        answers.append(recalled(new.query))
        with pytest.raises(
            ValueError, match="std=True needs rule='gaussian' and targets that are n"
        ):
            recalled(new.query, std=True)
    assert torch.equal(*answers)


def test_classes_that_change_from_task_to_task_are_left_alone() -> None:
    """Class c of one task is another class of the next: heads of others only harm."""
    g = torch.Generator().manual_seed(0)

    def tasks(number: int) -> tr.TaskBatch:
        means = 3 * torch.randn(number, 3, 8, generator=g)

        def draw() -> tuple[Tensor, Tensor]:
            y = torch.arange(3).repeat(4).expand(number, -1)
            x = means.gather(1, y[..., None].expand(-1, -1, 8))
            return x + torch.randn(x.shape, generator=g), y

        return tr.TaskBatch(draw(), draw(), ways=3)

    made = tr.MAML(nn.Linear(8, 3), lr=0.1, steps=20, engine="batched")
    memory = tr.TaskMemory(made, nn.functional.cross_entropy)
    memory.remember(tasks(20))
    assert memory.tune(tasks(40)).share == 0.0 and memory.tune().share == 0.0


def test_classes_that_tasks_share_are_known_from_others() -> None:
    """Three classes lie around the origin, turned by an angle of each task's own: one shot is vague."""
    g = torch.Generator().manual_seed(0)

    def tasks(number: int) -> tr.TaskBatch:
        turn = math.tau * torch.rand(number, 1, generator=g)

        def draw(samples: int) -> tuple[Tensor, Tensor]:
            y = torch.arange(3).repeat(samples).expand(number, -1)
            angle = turn + math.tau / 3 * y
            x = 2 * torch.stack([angle.cos(), angle.sin()], -1)
            return x + torch.randn(x.shape, generator=g), y

        return tr.TaskBatch(draw(1), draw(10), ways=3)

    made = tr.MAML(nn.Linear(2, 3), lr=0.3, steps=20, engine="batched")
    memory, new = tr.TaskMemory(made, nn.functional.cross_entropy), tasks(300)
    memory.remember(tasks(60))
    assert memory.tune(tasks(400)).share > 0

    def right(adapts: tr.MAML | tr.TaskMemory) -> float:
        answers = adapts.adapt(new.support, nn.functional.cross_entropy)(new.query)
        return float((answers.argmax(-1) == new.query.y).float().mean())

    assert right(memory) > right(made) + 0.01


def test_what_is_saved_answers_alike() -> None:
    memory, new = memory_of_waves(), waves(4, 1)
    memory.tune()
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    again = tr.TaskMemory(memory.learner)
    again.load_state_dict(torch.load(file, weights_only=True))
    found, expected = (m.adapt(new.support)(new.query, std=True) for m in (again, memory))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(
        ValueError, match=r"tune\(\) without tasks needs the samples of at least two"
    ):
        again.tune()
    again.tune(waves(20, 2))
    with pytest.raises(ValueError, match=r"state\['rule'\] must be that of the memory, 'softmax'"):
        tr.TaskMemory(memory.learner, rule="softmax").load_state_dict(memory.state_dict())


def test_a_memory_of_one_task_repeats_it() -> None:
    memory, new = memory_of_waves(1), waves(3, 1)
    recalled = memory.adapt(new.support)
    _, deviations = recalled(new.query, std=True)
    assert recalled.weights.tolist() == [[[1.0]]] * 3 and (deviations > 0).all()
    with pytest.raises(ValueError, match="at least two remembered tasks, got those of 1"):
        memory.tune()
    assert memory.tune(waves(40, 2)).tasks == 40


def test_constant_labels_give_the_constant() -> None:
    x = torch.rand(8, 10, 1, generator=torch.Generator().manual_seed(0))
    memory = tr.TaskMemory(tr.MAML(nn.Linear(1, 1), lr=0.5, steps=1, engine="batched"))
    memory.remember((x, torch.ones_like(x)), steps=50)
    assert len(memory) == 8
    answers, deviations = memory.adapt((x, torch.ones_like(x)))(x, std=True)
    close(answers, torch.ones_like(answers), 1e-3)
    assert deviations.isfinite().all()


def test_more_neighbours_than_remembered_are_all() -> None:
    new = waves(3, 1)
    few, many = memory_of_waves(6, neighbours=6), memory_of_waves(6, neighbours=1000)
    assert torch.equal(few.adapt(new.support)(new.query), many.adapt(new.support)(new.query))


def test_one_shot_and_another_number_type() -> None:
    memory, new = memory_of_waves(), waves(3, 1, shots=1)
    single = memory.adapt(new.support)(new.query, std=True)
    memory.learner.double()
    with pytest.raises(ValueError, match=r"is not what it was .* memory.forget\(\)"):
        memory.adapt(new.to(torch.float64).support)
    memory.forget()
    memory.remember(waves(40, 0).to(torch.float64), steps=100)
    fine = memory.adapt(new.to(torch.float64).support)(new.to(torch.float64).query, std=True)
    for one, other in zip(single, fine, strict=True):
        assert other.dtype == torch.float64
        close(one.double(), other, 1e-3)


def test_a_task_that_only_broken_models_explain_is_its_own() -> None:
    new = waves(3, 1)
    models = [lambda x: x * math.nan, lambda x: x / 0]
    memory = tr.TaskMemory(noise=0.1)
    memory.remember_models(models)
    own = [lambda x: 2 * x] * 3
    recalled = memory.adapt(new.support, own=own)
    memory.share = 0.5
    assert torch.equal(recalled(new.query), 2 * new.query.x)


@pytest.mark.unchecked
def test_wrong_use_is_told() -> None:
    new = waves(3, 1)
    with pytest.raises(ValueError, match=r"memory is empty. Call memory.remember"):
        tr.TaskMemory(learner()).adapt(new.support)
    with pytest.raises(ValueError, match="learner must be given to adapt to tasks, got None"):
        tr.TaskMemory().remember(new)
    with pytest.raises(ValueError, match="own must be None where the memory has a learner"):
        memory_of_waves().adapt(new.support, own=[abs, abs, abs])
    with pytest.raises(ValueError, match="own must be the models of validation tasks"):
        memory_of_waves().tune(own=[abs, abs, abs])
    wide = tr.TaskMemory(
        tr.MAML(nn.Linear(1, 2), lr=0.1, steps=1), lambda p, y: p.mean() - y.mean()
    )
    wide.remember(new, steps=1, held_out=0.0)
    with pytest.raises(
        ValueError, match=r"must have one shape, got outputs of shape \(2,\) and \(1,\). Use rule="
    ):
        wide.adapt(new.support)
    memory = memory_of_waves()
    with pytest.raises(
        ValueError, match=r"x must be \[tasks, queries, ...\] with tasks = 3, got \[2"
    ):
        memory.adapt(new.support)(new.query.x[:2])
    with pytest.raises(
        ValueError, match=r"labels \[samples, \*outputs\] of one shape, got .*\(2,\)"
    ):
        memory._labels.with_these(tr.Samples(new.query.x, new.query.y.expand(-1, -1, 2)))
    for name, value, text in (
        ("rule", "nearest", "rule must be one of"),
        ("spread", -1.0, "spread must be a finite number of at least 0"),
        ("noise", torch.tensor([0.0]), "noise must be a number above 0, or one for each output"),
        ("std_scale", 0.0, "std_scale must be a finite number above 0"),
        ("kernel_scale", -1.0, "kernel_scale must be a finite number of at least 0"),
    ):
        before = getattr(memory, name)
        setattr(memory, name, value)
        with pytest.raises(ValueError, match=text):
            memory.adapt(new.support)
        setattr(memory, name, before)
