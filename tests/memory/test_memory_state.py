"""What is loaded into a memory must be whole, and what is odd in a memory must not show in its answers."""

import pytest
import torch
from torch import Tensor, nn

import trlearner as tr


def lines(tasks: int, seed: int = 0) -> tr.TaskBatch:
    g = torch.Generator().manual_seed(seed)
    x, slope = torch.rand(tasks, 6, 1, generator=g), torch.rand(tasks, 1, 1, generator=g)
    return tr.TaskBatch((x[:, :3], slope * x[:, :3]), (x[:, 3:], slope * x[:, 3:]))


def memory(tasks: int = 4, **options: object) -> tr.TaskMemory:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner = tr.MAML(nn.Linear(1, 1), lr=0.1, steps=2)
    made = tr.TaskMemory(learner, rule="softmax", **{"share": 0.5, **options})
    if tasks:
        made.remember(lines(tasks), steps=2, held_out=0.0)
    return made


def damaged(part: str, name: str, value: object) -> object:
    def change(state: dict) -> dict:
        return {**state, part: {**state[part], name: value}}

    return change


NAN = torch.tensor([[[1.0]], [[float("nan")]], [[1.0]], [[float("inf")]]])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda state: [1], TypeError, r"must be the dict that memory.state_dict\(\) .* got list"),
        (
            lambda state: {k: v for k, v in state.items() if k != "share"},
            ValueError,
            r"must have the parts .* but \['share'\] are missing. Pass what memory.state_dict",
        ),
        (
            lambda state: {},
            ValueError,
            r"\['fast', 'state', 'labels', 'rule', 'share', .*\] are missing",
        ),
        (lambda state: {**state, "fast": 1}, TypeError, r"state\['fast'\] .* by name, got int"),
        (damaged("state", "model.bias", "b"), TypeError, r"state\['state'\] .* by name, got str"),
        (
            lambda state: {**state, "state": {}},
            ValueError,
            r"\['model.bias', 'model.weight'\] are m",
        ),
        (
            lambda state: {**state, "fast": {}},
            ValueError,
            r"of the same tasks, at least one, got \{\}",
        ),
        (
            damaged("fast", "model.bias", torch.zeros(2, 1)),
            ValueError,
            r"of the same tasks, at least one, got .*'model.bias': \[2, 1\]",
        ),
        (
            lambda state: {**state, "fast": {"model.bias": state["fast"]["model.bias"]}},
            ValueError,
            r"what the learner adapts, .* but \['model.weight'\] differ or are missing",
        ),
        (damaged("fast", "model.bias", torch.zeros(4, 2)), ValueError, r"\['model.bias'\] differ"),
        (
            damaged("fast", "model.bias", torch.zeros(4, 1).double()),
            ValueError,
            r"\['model.bias'\] differ",
        ),
        (damaged("fast", "model.weight", NAN), ValueError, r"NaN or infinity .* tasks \[1, 3\]"),
        (
            lambda state: {**state, "share": float("nan")},
            ValueError,
            "share must be a finite number of at least 0",
        ),
        (
            lambda state: {**state, "temperature": 0.0},
            ValueError,
            "temperature must be a finite number ab",
        ),
        (
            damaged("state", "model.bias", torch.ones(1)),
            ValueError,
            "'model.bias' is not what it was when tasks were remembered",
        ),
    ],
)
def test_damage_is_refused_and_changes_nothing(change, error, match):
    kept, new = memory(), lines(2, seed=1)
    before = kept.adapt(new.support)(new.query.x)
    with pytest.raises(error, match=match):
        kept.load_state_dict(change(kept.state_dict()))
    assert torch.equal(kept.adapt(new.support)(new.query.x), before)


def test_what_is_whole_is_loaded_even_if_empty():
    full, new = memory(share=0.25), lines(2, seed=1)
    other = memory(tasks=0)
    other.load_state_dict(full.state_dict())
    assert len(other) == 4
    assert torch.equal(other.adapt(new.support)(new.query.x), full.adapt(new.support)(new.query.x))
    other.load_state_dict(memory(tasks=0).state_dict())
    assert len(other) == 0


def softmax_answer(kept: tr.TaskMemory, new: tr.TaskBatch) -> Tensor:
    """The rule, model by model."""
    own, fast, answers = kept.learner.adapt(new.support, kept.loss_fn), kept._kept.fast, []
    for i in range(len(new)):
        (x, y), (xq, _) = new.support.real(i), new.query.real(i)
        models = list(zip(fast["model.weight"], fast["model.bias"], strict=True))
        losses = torch.stack([(x @ w.T + b - y).square().mean() for w, b in models])
        w = (-losses / kept.temperature).softmax(0)
        others = sum(w[j] * (xq @ v.T + b) for j, (v, b) in enumerate(models))
        answers.append((1 - kept.share) * own(new.query.x)[i] + kept.share * others)
    return torch.stack(answers).detach()


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_a_memory_of_few_tasks_asks_all_of_them(tasks: int):
    kept, new = memory(tasks, top_k=30), lines(3, seed=1)
    found = kept.adapt(new.support)
    assert found.weights.shape == (3, tasks)
    torch.testing.assert_close(found(new.query.x), softmax_answer(kept, new), rtol=0, atol=1e-5)
    assert kept.tune(lines(1, seed=2)).share == 0.0  # one task is no evidence


def test_constant_labels_are_labels():
    kept, x = memory(), torch.rand(2, 3, 1, generator=torch.Generator().manual_seed(1))
    new = tr.TaskBatch((x, torch.ones(2, 3, 1)), (x, torch.ones(2, 3, 1)))
    found = kept.adapt(new.support)(x)
    torch.testing.assert_close(found, softmax_answer(kept, new), rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-45, 1e-30])
def test_at_the_lowest_temperature_the_best_model_answers(temperature: float):
    kept, new = memory(share=1.0), lines(3, seed=1)
    wanted = kept.adapt(new.support).models[:, 0]  # by their loss
    kept.temperature = temperature
    found = kept.adapt(new.support)
    assert found.weights.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 3
    assert torch.equal(found.models[:, 0], wanted)


def test_tasks_of_another_number_of_classes_are_refused():
    def classes(ways: int) -> tr.TaskBatch:
        y = torch.arange(4).repeat(2, 1) % ways
        x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(ways))
        return tr.TaskBatch((x, y), (x, y), ways=ways)

    kept = tr.TaskMemory(tr.ProtoNet(nn.Linear(3, 2)), nn.functional.cross_entropy)
    kept.remember(classes(2))
    match = r"must adapt the same tensors, got .*\[3, 2\].* same number of classes \(ways\)"
    for use in (
        lambda: kept.remember(classes(3)),
        lambda: kept.adapt(classes(3).support),
        lambda: kept.tune(classes(3)),
    ):
        with pytest.raises(ValueError, match=match):
            use()


def test_a_learner_that_changed_its_dtype_is_another():
    kept = memory()
    kept.learner.double()
    new = lines(2).to(torch.float64)
    with pytest.raises(ValueError, match=r"is not what it was .* memory.forget\(\)"):
        kept.adapt(new.support)
    kept.forget()
    kept.remember(new)
    assert kept.adapt(new.support)(new.query.x).dtype == torch.float64
