"""Several processes are one: real ones, on gloo."""

from __future__ import annotations

import contracts
import pytest
import torch
from rank_problem import ALIGNED, EXACT, Problem, check_equal, made, problems
from ranks import Ranks

import trlearner as tr
from regularizer.test_nested import Words, batch, draw_words, of_words
from trlearner.distributed import broadcast, own_tasks, sync_gradients

TWO = {
    **problems([3, 2]),
    "two tasks": Problem([1, 1]),
    "two tasks, classes": Problem([1, 1], "protonet", **ALIGNED, options={"align": "sinkhorn"}),
}
FOUR = {
    name: problems([2, 1, 1, 1])[name]
    for name in (
        "maml batched",
        "anil loop",
        "protonet batched",
        "BatchNorm batched",
        "sinkhorn, top_k, softmax",
        "quotient",
        "masks",
        "ranks of other sizes",
        "select, masks",
        "ddp",
        "ddp, unused",
        "ddp, lam 0",
    )
}


@pytest.mark.parametrize("name", TWO)
def test_two_ranks_equal_one(two: Ranks, name: str) -> None:
    check_equal(two(TWO[name]))


@pytest.mark.parametrize("name", FOUR)
def test_four_ranks_equal_one(four: Ranks, name: str) -> None:
    check_equal(four(FOUR[name]))


UNASKED = {
    "values": Problem([2, 1, 1, 1], options={"top_k": 1}),
    "logits": Problem([1, 1, 1, 2], **ALIGNED, options={"top_k": 1, "align": "sinkhorn"}),
}


@pytest.mark.parametrize("name", UNASKED)
def test_ranks_equal_one_where_nobody_asks_the_second(four: Ranks, name: str) -> None:
    problem = UNASKED[name]
    learner, reg = problem.made()
    weights = reg(learner, problem.batch(slice(None))).weights
    assert weights is not None and not weights[:, problem.counts[0]].any()
    check_equal(four(problem))


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[2, 1, 1, 1], [1, 3, 1, 2], [1, 1, 1, 1]], ids=str)
def test_four_ranks_equal_one_whatever_the_step(four: Ranks, counts: list[int]) -> None:
    for problem in problems(counts).values():
        check_equal(four(problem))


def structured(rank: int, size: int) -> dict[str, float]:
    """Dicts of inputs, targets and predictions, in tasks of unequal sizes."""
    whole = batch(draw_words, unequal=True)
    share = whole[:2] if rank == 0 else whole[2:]
    found = {}
    for name, encoder in (("labelled", 3), ("update", 0)):
        made = []
        for tasks in (share, whole):
            torch.manual_seed(0)
            learner = tr.MAML(Words().double(), lr=0.1, steps=1, engine="batched")
            of = tr.UpdateEncoder(8) if not encoder else tr.LabelledEncoder(None, 4, 12, encoder)
            reg = tr.TRLearner(of, lam=0.5, loss_fn=of_words).double()
            step = tr.MetaStep(learner, reg) if tasks is share else reg
            out = step(tasks) if tasks is share else reg(learner, tasks)
            out.loss.backward()
            if tasks is share:
                sync_gradients(learner, reg)
            made.append((out, [p.grad for p in learner.parameters()]))
        (mine, grads), (all_of_it, wanted) = made
        found[f"loss, {name}"] = abs(mine.loss.item() - all_of_it.loss.item())
        found[f"task_loss, {name}"] = abs(mine.task_loss.item() - all_of_it.task_loss.item())
        worst = max(float((a - b).abs().max()) for a, b in zip(grads, wanted, strict=True))
        found[f"gradient, {name}"] = worst
        place = slice(0, 2) if rank == 0 else slice(2, 3)
        said = (mine.predictions["mean"] - all_of_it.predictions["mean"][place]).abs()
        found[f"predictions, {name}"] = float(said.max())
    return found


def test_two_ranks_equal_one_on_structures(two: Ranks) -> None:
    for one in two(structured):
        assert max(one.values()) <= EXACT, one


def looked_at(rank: int, size: int) -> dict[str, float]:
    """Without gradients, and in inference mode."""
    step, _ = made()
    problem = Problem([2, 2])
    share, whole = problem.batch(slice(2 * rank, 2 * rank + 2)), problem.batch(slice(None))
    expected = step.regularizer(step.learner, whole).loss.item()
    found = {}
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = step(share)
        assert not out.loss.requires_grad
        found[mode.__name__] = abs(out.loss.item() - expected)
    return found


def test_without_gradients(two: Ranks) -> None:
    for one in two(looked_at):
        assert max(one.values()) <= EXACT


def other_generators(rank: int, size: int) -> list[tuple[float, float]]:
    """Rank 0's random state is taken at the start, and whenever it was used on some ranks only."""
    mine = Problem([2, 2]).batch(slice(2 * rank, 2 * rank + 2))
    whole = Problem([2, 2]).batch(slice(None))
    step, _ = made(queries=0.5)
    one, _ = made(queries=0.5)
    step.regularizer.generator.manual_seed(rank)
    one.regularizer.generator.manual_seed(0)
    found = []
    for number in range(3):
        if number == 2 and rank:
            step.regularizer(step.learner, mine)  # a look at some tasks
        several = step(mine).relation_loss
        found.append((several.item(), one.regularizer(one.learner, whole).relation_loss.item()))
    return found


def test_queries_are_chosen_as_rank_0_says(two: Ranks) -> None:
    for one in two(other_generators):
        for found, expected in one:
            assert abs(found - expected) <= EXACT
        assert len({round(expected, 9) for _, expected in one}) == 3  # they do differ


def shares(rank: int, size: int) -> list[int]:
    return [len(own_tasks(contracts.regression_batch(tasks=tasks))) for tasks in (2, 5)]


def test_tasks_are_dealt_out(two: Ranks) -> None:
    assert two(shares) == [[1, 2], [1, 3]]


# ---- without a process group ----------------------------------------------------------------


def test_alone_it_is_the_plain_step() -> None:
    step, _ = made()
    batch = contracts.regression_batch()
    found, expected = step(batch), step.regularizer(step.learner, batch)
    assert torch.equal(found.loss, expected.loss)
    assert own_tasks(batch) is batch


@pytest.mark.unchecked
def test_without_a_process_group_several_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, batch = made()
    with pytest.raises(ValueError, match="there is no process group. Call .*init_process_group"):
        sync_gradients(step)
    with pytest.raises(ValueError, match="there is no process group. Call .*init_process_group"):
        broadcast(step)
    with pytest.raises(TypeError, match="batch must be a TaskBatch, got NoneType. Build one with"):
        step(None)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="WORLD_SIZE=4 says that this is one of 4 processes"):
        step(batch)
