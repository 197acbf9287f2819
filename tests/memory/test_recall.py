"""`TaskMemory` by the softmax rule against the formula, and what it refuses."""

import io

import contracts
import pytest
import reference
import torch
from contracts import CLASSIFIERS, EAGER, LEARNERS, SOLVED, close
from torch import nn
from torch.nn.functional import mse_loss

import trlearner as tr

EXACT = 1e-12
OPTIONS = {"share": 0.7, "temperature": 0.4}
PLAIN = {"steps": 2, "held_out": 0.0}
"""As the formulas have it: every model takes the learners' steps."""


def problem(name: str) -> tuple[tr.TaskBatch, tr.TaskBatch, tr.types.LossFn, str]:
    """Known tasks, new ones, a loss and what is mixed."""
    if name in CLASSIFIERS:
        known, new = contracts.class_batch(1, tasks=5), contracts.class_batch(2)
        return known, new, contracts.cross_entropy, "logits"
    return contracts.regression_batch(1, tasks=5), contracts.regression_batch(2), mse_loss, "values"


def everything(batch: tr.TaskBatch, i: int) -> reference.Pair:
    (sx, sy), (qx, qy) = batch.support.real(i), batch.query.real(i)
    return torch.cat([sx, qx]), torch.cat([sy, qy])


def memory_of(
    learner: tr.Learner, known: tr.TaskBatch, loss_fn: tr.types.LossFn, **options: object
) -> tr.TaskMemory:
    memory = tr.TaskMemory(learner, loss_fn, rule="softmax", **{**OPTIONS, **options})
    memory.remember(known, **PLAIN)
    return memory


@pytest.mark.full
@pytest.mark.parametrize("top_k", [1, 3, 30])
@pytest.mark.parametrize("engine", EAGER)
@pytest.mark.parametrize("name", [*LEARNERS, *SOLVED])
def test_answers_are_the_formula(name: str, engine: str, top_k: int) -> None:
    known, new, loss_fn, kind = problem(name)
    learner = contracts.learner(name, contracts.net(), engine)
    memory = memory_of(learner, known, loss_fn, top_k=top_k, chunk_size=2)
    found = memory.adapt(new.support)(new.query)
    adapt_task, predict, _ = contracts.learner_by_formula(
        name, learner, dict(learner.model.named_parameters()), loss_fn, first_order=False
    )
    others = [adapt_task(everything(known, j)) for j in range(len(known))]
    for i in range(len(new)):
        support, (x, _) = new.support.real(i), new.query.real(i)
        expected = reference.recalled(
            predict,
            adapt_task(support),
            others,
            support,
            x,
            loss_fn,
            **OPTIONS,
            top_k=top_k,
            kind=kind,
        )
        close(found[i], expected.detach(), EXACT)


def test_masked_samples_count_for_nothing() -> None:
    known, new, loss_fn, _ = problem("maml")
    learner = contracts.learner("maml", contracts.net(), "batched")
    short = memory_of(learner, known, loss_fn).adapt((new.support.x[:, :3], new.support.y[:, :3]))
    mask = torch.arange(new.support.x.shape[1]).expand(len(new), -1) < 3
    masked = tr.Samples(new.support.x, new.support.y, mask)
    padded = memory_of(learner, known, loss_fn).adapt(masked)
    close(padded(new.query), short(new.query), EXACT)


def test_without_a_share_answers_are_the_learners_own_to_the_last_bit() -> None:
    known, new, loss_fn, _ = problem("maml")
    learner = contracts.learner("maml", contracts.net(), "batched")
    recalled = memory_of(learner, known, loss_fn, share=0.0).adapt(new.support)
    assert torch.equal(recalled(new.query), learner.adapt(new.support, loss_fn)(new.query).detach())
    assert recalled.weights.shape == (len(new), 0)


def test_weights_name_whom_they_are_of() -> None:
    """A task that is remembered explains itself best."""
    known, _, loss_fn, _ = problem("maml")
    learner = contracts.learner("maml", contracts.net(), "batched")
    recalled = memory_of(learner, known, loss_fn, top_k=3, temperature=1e-3).adapt(known.query)
    assert recalled.models[:, 0].tolist() == list(range(len(known)))
    close(recalled.weights.sum(1), torch.ones(len(known), dtype=torch.float64), EXACT)


def waves(tasks: int, seed: int) -> tr.TaskBatch:
    """Two kinds of tasks only: whoever remembers them knows all."""
    g = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(tasks, 23, 1, generator=g) - 2
    sign = 2.0 * (torch.arange(tasks) % 2) - 1
    y = sign[:, None, None] * x
    return tr.TaskBatch((x[:, :3], y[:, :3]), (x[:, 3:], y[:, 3:]))


def test_tuning_turns_to_others_where_they_help() -> None:
    learner = tr.MAML(nn.Linear(1, 1), lr=0.02, steps=1)
    memory = tr.TaskMemory(learner, rule="softmax")
    memory.remember(waves(10, 0), steps=200)
    tuned = memory.tune(waves(20, 1))
    assert (memory.share, tuned.share) == (1.0, 1.0)
    assert tuned.loss < 0.01 * tuned.alone
    test = waves(20, 2)
    found = mse_loss(memory.adapt(test.support, mse_loss)(test.query.x), test.query.y)
    assert found < 0.01 * mse_loss(
        learner.adapt(test.support, mse_loss)(test.query.x), test.query.y
    )


def test_tuning_leaves_others_alone_where_they_do_not() -> None:
    """Those that are remembered lie somewhere else altogether."""
    learner = tr.MAML(nn.Linear(1, 1), lr=0.1, steps=30)
    memory = tr.TaskMemory(learner, rule="softmax", share=0.9)
    known = waves(10, 0)
    memory.remember(
        known.replace(*(tr.Samples(s.x, s.y + 9) for s in (known.support, known.query)))
    )
    tuned = memory.tune(waves(20, 1))
    assert (memory.share, tuned.loss) == (0.0, tuned.alone)


@pytest.mark.parametrize("size", [1e25, *contracts.later(100.0)])
def test_tuning_is_not_confused_by_one_task_that_explodes(size: float) -> None:
    """One task's inputs are large: the learner's own steps lead far away, or beyond all numbers."""
    learner = tr.MAML(nn.Linear(1, 1), lr=0.02, steps=2)
    memory = tr.TaskMemory(learner, rule="softmax")
    memory.remember(waves(10, 0), steps=200)
    tasks = waves(20, 1)
    for part in (tasks.support, tasks.query):
        part.x[3] *= size
    tuned = memory.tune(tasks)
    own = learner.adapt(tasks.support, mse_loss)(tasks.query.x)[3]
    assert not mse_loss(own, tasks.query.y[3]) < 1e6
    assert (tuned.share, memory.temperature < 10) == (1.0, True)
    assert tuned.loss < 0.2 * tuned.alone < 2


def test_state_goes_through_a_file_that_executes_nothing() -> None:
    known, new, loss_fn, _ = problem("maml")
    learner = contracts.learner("maml", contracts.net(), "batched")
    memory = memory_of(learner, known, loss_fn)
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    again = tr.TaskMemory(learner, loss_fn, rule="softmax")
    again.load_state_dict(torch.load(file, weights_only=True))
    assert len(again) == len(known)
    assert torch.equal(again.adapt(new.support)(new.query), memory.adapt(new.support)(new.query))


@pytest.mark.unchecked
def test_tasks_that_explode_are_not_remembered() -> None:
    known, new, loss_fn, _ = problem("maml")
    learner = contracts.learner("maml", contracts.net(), "batched")
    broken = torch.where(torch.arange(5)[:, None, None] == 2, 1e300, known.query.y)
    memory = tr.TaskMemory(learner, loss_fn, rule="softmax", **OPTIONS)
    with pytest.warns(
        UserWarning, match="1 of 5 models are not remembered: 1 not finite. Take fewer than steps=9"
    ):
        memory.remember((known.query.x, broken), steps=9, held_out=0.0)
    assert len(memory) == 4
    memory.forget()
    memory.remember(known.query[[0, 1, 3, 4]], steps=9, held_out=0.0)
    assert memory.adapt(new.support)(new.query).isfinite().all()


def test_where_nobody_explains_a_task_answers_are_its_own() -> None:
    known, new, *_ = problem("maml")

    def picky(predictions: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = mse_loss(predictions, y)
        return loss + torch.where((y.mean() - strange).abs() < 1e-9, torch.inf, 0.0)

    strange = new.support.y[1].mean()
    learner = contracts.learner("maml", contracts.net(), "batched")
    memory = tr.TaskMemory(learner, picky, rule="softmax", share=1.0)
    memory.remember(known, **PLAIN)
    recalled = memory.adapt(new.support)
    assert recalled.weights[1].sum() == 0
    own = learner.adapt(new.support, picky)(new.query)
    found = recalled(new.query)
    assert torch.equal(found[1], own[1].detach()) and not torch.isclose(found[0], own[0]).any()


def test_remembering_twice_adds() -> None:
    known, new, loss_fn, _ = problem("maml")
    learner = contracts.learner("maml", contracts.net(), "batched")
    memory = tr.TaskMemory(learner, loss_fn, rule="softmax", **OPTIONS)
    for part in (slice(0, 2), slice(2, None)):
        memory.remember(known[part], **PLAIN)
    whole = memory_of(learner, known, loss_fn)
    close(memory.adapt(new.support)(new.query), whole.adapt(new.support)(new.query), EXACT)


class Scaled(nn.Linear):
    """Has a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * super().forward(x)


def test_parameters_may_be_single_numbers() -> None:
    x = torch.rand(4, 5, 3)
    memory = tr.TaskMemory(tr.MAML(Scaled(), lr=0.1, steps=1), rule="softmax")
    memory.remember((x, x.sum(2, keepdim=True)), steps=1, held_out=0.0)
    assert memory.adapt((x, x.sum(2, keepdim=True)))(x).shape == (4, 5, 1)


def test_integers_that_are_no_classes_are_named_as_such() -> None:
    x = torch.rand(4, 5, 3)
    y = torch.ones(4, 5, 1, dtype=torch.int64)
    learner = tr.MAML(nn.Linear(3, 1), lr=0.1, steps=1)
    for mixture in ("auto", "values"):
        memory = tr.TaskMemory(learner, nn.functional.poisson_nll_loss, mixture=mixture)
        memory.remember((x, y))
        recalled = memory.adapt((x, y))
        if mixture == "values":
            assert recalled(x).shape == (4, 5, 1)
        else:
            with pytest.raises(ValueError, match="Pass mixture='values' if these are no class"):
                recalled(x)


def test_questions_have_no_targets() -> None:
    known, new, loss_fn, _ = problem("protonet")
    learner = contracts.learner("protonet", contracts.net(), "batched")
    memory = memory_of(learner, known, loss_fn)
    recalled = memory.adapt(new.support)
    found = recalled(new.query.x, torch.ones(new.query.x.shape[:2], dtype=torch.bool))
    close(found, recalled(new.query.x), EXACT)


@pytest.mark.unchecked
def test_wrong_use_is_told() -> None:
    known, new, loss_fn, _ = problem("maml")
    learner = contracts.learner("maml", contracts.net(), "batched")
    memory = tr.TaskMemory(learner, loss_fn, rule="softmax")
    with pytest.raises(ValueError, match=r"memory is empty. Call memory.remember"):
        memory.adapt(new.support)
    memory.remember(known, **PLAIN)
    with pytest.raises(ValueError, match="loss_fn must be the one that the memory was made with"):
        memory.adapt(new.support, contracts.cross_entropy)
    with pytest.raises(
        ValueError, match=r"5 of 5 models are not remembered: 5 not finite. Take fewer than steps"
    ):
        memory.remember(
            tr.Samples(known.support.x, 1e300 * known.support.y),
            steps=500,
            held_out=0.0,
        )
    assert len(memory) == 5
    for name, value, text in (
        ("share", 1.5, "share must be a finite number of at least 0 and of at most 1"),
        ("share", "half", "share must be a finite number of at least 0 and of at most 1"),
        ("temperature", 0.0, "temperature must be a finite number above 0"),
        ("mixture", "both", "mixture must be one of"),
    ):
        before = getattr(memory, name)
        setattr(memory, name, value)
        with pytest.raises(ValueError, match=text):
            memory.adapt(new.support)
        setattr(memory, name, before)
    with pytest.raises(TypeError, match="tasks must be a TaskBatch, whose queries tell"):
        memory.tune((new.support.x, new.support.y))
    state = memory.state_dict()
    next(learner.parameters()).data.add_(1.0)
    for use in (
        lambda: memory.adapt(new.support),
        lambda: memory.remember(known),
        lambda: tr.TaskMemory(learner, loss_fn, rule="softmax").load_state_dict(state),
        lambda: memory.load_state_dict(state),  # what it holds is out of date as well
    ):
        with pytest.raises(
            ValueError, match=r"is not what it was when tasks were remembered.*forget"
        ):
            use()
    memory.forget()
    memory.remember(known, **PLAIN)
    memory.adapt(new.support)
    with pytest.raises(TypeError, match="learner must be a trlearner Learner"):
        tr.TaskMemory(nn.Linear(1, 1))
    for name in ("top_k", "chunk_size"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 0"):
            tr.TaskMemory(learner, **{name: 0})
