"""Several processes are one: real ones, on gloo."""

from __future__ import annotations

import copy
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import contracts
import ranks
import trlearner as tr
from ranks import Failed, Problem
from trlearner.distributed import LostRank, broadcast, own_tasks, sync_gradients, traffic

EXACT = 1e-10
TESTS = pathlib.Path(__file__).parent
DOCS = TESTS.parent / "docs" / "scaling.md"
ALIGNED = {"kind": "classes", "encoder": "labelled"}


def problems(counts: list[int]) -> dict[str, Problem]:
    """Every kind of step, its tasks on ranks like this."""
    made = partial(Problem, counts)
    found = {}
    for engine in ("loop", "batched"):
        for name in contracts.LEARNERS:
            found[f"{name} {engine}"] = made(name, engine)
        found[f"protonet {engine}"] = made(
            "protonet", engine, **ALIGNED, options={"align": "sinkhorn"}
        )
        some = {"queries": 0.5}
        found[f"BatchNorm {engine}"] = made("maml", engine, norm=True, options=some)
        found[f"BatchNorm, shared body, top_k {engine}"] = made(
            "anil", engine, norm=True, options={**some, "top_k": 2}
        )
    for name in ("softmax", "quotient"):
        found[name] = made(options={"normalize": name})
    options: dict[str, dict[str, Any]] = {
        "logits": {"align": "none"},
        "sinkhorn, top_k, softmax": {"align": "sinkhorn", "top_k": 2, "normalize": "softmax"},
        "hungarian": {"align": "hungarian"},
        "values, aligned": {"align": "sinkhorn", "mixture": "values", "top_k": 1},
    }
    found |= {name: made(**ALIGNED, options=some) for name, some in options.items()}
    some = {"queries": 0.6}
    return found | {
        "higher": made(engine="higher"),
        "auto": made(engine="auto"),
        "first order": made(encoder="update", learner_options={"first_order": True}),
        "update encoder": made(encoder="update"),
        "function encoder": made(encoder="function"),
        "queries": made(options={"queries": 0.4}),
        "masks": made(sizes="unequal", options=some),
        "masks, loop, top_k": made(engine="loop", sizes="unequal", options={**some, "top_k": 1}),
        "masks, BatchNorm": made(engine="loop", sizes="unequal", norm=True, options=some),
        "ranks of other sizes": made(sizes="queries", options=some),
        "chunks": made(options={"chunk_size": 1}),
        "chunks, top_k": made(options={"chunk_size": 1, "top_k": 2}),
        "lam 0": made(options={"lam": 0.0}),
        "ddp": made(ddp=True),
        "ddp, unused": made("anil", ddp=True, find_unused=True),
        "ddp, masks": made("metasgd", ddp=True, sizes="unequal", options=some),
        "ddp, lam 0": made(ddp=True, options={"lam": 0.0}),
    }


TWO = {
    **problems([3, 2]),
    "idle": Problem([0, 3]),
    "idle, classes": Problem([3, 0], "protonet", **ALIGNED, options={"align": "sinkhorn"}),
    "one task": Problem([0, 1]),
    "two tasks": Problem([1, 1]),
}
FOUR = {
    name: problems([2, 0, 1, 1])[name]
    for name in (
        "maml batched",
        "anil loop",
        "protonet batched",
        "BatchNorm batched",
        "sinkhorn, top_k, softmax",
        "quotient",
        "masks",
        "ranks of other sizes",
        "ddp",
        "ddp, unused",
        "ddp, lam 0",
    )
}


# ---- what goes wrong ------------------------------------------------------------------------


def made(**options: Any) -> tuple[tr.MetaStep, tr.TaskBatch]:
    problem = Problem([2, 2], options=options)
    batch = problem.batch(slice(0, 2))
    assert batch is not None
    return tr.MetaStep(*problem.made()), batch


def other_options(rank: int, size: int) -> None:
    step, batch = made(lam=0.1 + rank, heads=3 + rank)
    step(batch)


def other_shapes(rank: int, size: int) -> None:
    step, batch = made()
    if rank:
        x = torch.zeros(2, 4, 2, 1, dtype=torch.float64)
        query = tr.Samples(x.expand(2, 4, 2, 2), torch.zeros(2, 4, 2, 3, dtype=torch.float64))
        support = tr.Samples(query.x, query.y)
        batch = tr.TaskBatch(support=support, query=query)
    step.regularizer.encoder = tr.UpdateEncoder(dim=contracts.HIDDEN)
    step(batch)


def other_start(rank: int, size: int) -> None:
    step, batch = made()
    with torch.no_grad():
        step.learner.model.body.weight += rank
    step(batch)


def broadcast_start(rank: int, size: int) -> bool:
    step, batch = made()
    with torch.no_grad():
        step.learner.model.body.weight += rank
    before = step.learner.model.body.weight.clone()
    broadcast(step.learner, step.regularizer)
    step(batch)
    return torch.equal(before, step.learner.model.body.weight) == (rank == 0)


def around_ddp(rank: int, size: int) -> None:
    step, batch = made()
    ddp = DistributedDataParallel(step)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    if rank:
        batch = contracts.regression_batch(seed=9)[:2]
    for _ in range(2):
        ddp.module(batch).loss.backward()
        optimizer.step()


def one_fails(rank: int, size: int) -> None:
    step, batch = made()
    if rank:

        def broken(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (predictions - targets).square()

        broken.__qualname__ = step.regularizer.loss_fn.__qualname__
        step.regularizer.loss_fn = broken
    step(batch)


def one_misuses(rank: int, size: int) -> None:
    step, batch = made()
    step("tasks" if rank else batch)


def compiled(rank: int, size: int) -> None:
    step, batch = made()
    step.learner.engine = "compiled"
    step(batch)


def lazy(rank: int, size: int) -> None:
    step, _ = made()
    tr.MetaStep(step.learner, tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=4)))


def nothing(rank: int, size: int) -> None:
    step, _ = made()
    step(None)


def twice_summed(rank: int, size: int) -> None:
    step, batch = made()
    ddp = DistributedDataParallel(step)
    ddp(batch).loss.backward()
    sync_gradients(step.learner, step.regularizer)


def other_generators(rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank 0's generator is taken at the start, and must not go its own way later on."""
    step, batch = made(queries=0.5)
    step.regularizer.generator.manual_seed(rank)
    first = step(batch).relation_loss
    learner, reg = Problem([2, 2], options={"queries": 0.5}).made()
    reg.generator.manual_seed(0)
    whole = Problem([2, 2]).batch(slice(None))
    assert whole is not None
    mine = Problem([2, 2]).batch(slice(2 * rank, 2 * rank + 2))
    again, _ = made(queries=0.5)
    again.regularizer.generator.manual_seed(rank)
    assert first is not None
    return again(mine).relation_loss, reg(learner, whole).relation_loss


def apart_generators(rank: int, size: int) -> None:
    step, batch = made(queries=0.5)
    step(batch)
    if rank:
        step.regularizer.generator.manual_seed(7)
    step(batch)


def watched(rank: int, size: int) -> None:
    step, batch = made()
    step.regularizer.monitor = lambda *a: None
    step(batch)


def looked_at(rank: int, size: int) -> dict[str, float]:
    """Without gradients, and in inference mode."""
    step, _ = made()
    problem = Problem([2, 2])
    share, whole = problem.batch(slice(2 * rank, 2 * rank + 2)), problem.batch(slice(None))
    assert share is not None and whole is not None
    expected = step.regularizer(step.learner, whole).loss.item()
    found = {}
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = step(share)
        assert not out.loss.requires_grad
        found[mode.__name__] = abs(out.loss.item() - expected)
    return found


def accumulated(rank: int, size: int) -> float:
    """Two meta-batches, one optimizer step: DDP sums once."""
    step, _ = made()
    learner, reg = copy.deepcopy((step.learner, step.regularizer))
    ddp = DistributedDataParallel(step)
    batches = [contracts.regression_batch(seed=s) for s in (1, 2)]
    with ddp.no_sync():
        ddp(own_tasks(batches[0])).loss.backward()
    ddp(own_tasks(batches[1])).loss.backward()
    for batch in batches:
        reg(learner, batch).loss.backward()
    pairs = zip(step.parameters(), tr.MetaStep(learner, reg).parameters(), strict=True)
    return max((p.grad - q.grad).abs().max().item() for p, q in pairs)


def unused_anywhere(rank: int, size: int) -> tuple[bool, bool]:
    """Without DDP a parameter that no rank uses has no gradient, as on one rank."""
    step, batch = made(lam=0.0)
    step(batch if rank else None).loss.backward()
    sync_gradients(step.learner, step.regularizer)
    weight = step.learner.model.body.weight
    return step.regularizer.relation.weight.grad is None, bool(weight.grad.any())


def counted(rank: int, size: int) -> tuple[dict[str, tuple[int, int, int]], int, str]:
    """Of a step of MAML with tasks ``[3, 2]``."""
    problem = Problem([3, 2])
    learner, reg = problem.made()
    step = tr.MetaStep(learner, reg)
    share = problem.batch([slice(0, 3), slice(3, 5)][rank])
    traffic()
    step(share).loss.backward()
    sync_gradients(learner, reg)
    text = str(traffic(reset=False))
    rows = traffic().rows
    numbers = sum(p.numel() for p in step.parameters())
    return {n: (r.calls, r.sent, r.received) for n, r in rows.items()}, numbers, text


def shares(rank: int, size: int) -> list[int]:
    found = []
    for tasks in (1, 2, 5):
        share = own_tasks(contracts.regression_batch(tasks=tasks))
        found.append(0 if share is None else len(share))
    return found


def untouched(rank: int, size: int) -> None:
    """A change between forward and backward is an error, not a wrong gradient."""
    step, batch = made()
    loss = step(batch).loss
    with torch.no_grad():
        step.learner.model.head.weight += 1
    loss.backward()


CASES = {
    f.__name__: f
    for f in (
        other_options,
        other_shapes,
        other_start,
        broadcast_start,
        around_ddp,
        one_misuses,
        one_fails,
        compiled,
        lazy,
        nothing,
        twice_summed,
        other_generators,
        apart_generators,
        watched,
        looked_at,
        accumulated,
        unused_anywhere,
        counted,
        shares,
        untouched,
    )
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(2, {**TWO, **CASES}, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(4, FOUR, tmp_path_factory.mktemp("four"))


def check_equal(found: list[dict[str, Any]], name: str) -> None:
    for rank, one in enumerate(found):
        worst = one[name]
        assert not isinstance(worst, Failed), f"rank {rank}: {worst.trace}"
        assert {"loss", "task_loss"} <= set(worst)
        assert any(n.startswith("gradient") for n in worst)
        off = {n: v for n, v in worst.items() if not v <= EXACT}
        assert not off, f"rank {rank}: {off}"


@pytest.mark.parametrize("name", TWO)
def test_two_ranks_equal_one(two: list[dict[str, Any]], name: str) -> None:
    check_equal(two, name)


@pytest.mark.parametrize("name", FOUR)
def test_four_ranks_equal_one(four: list[dict[str, Any]], name: str) -> None:
    check_equal(four, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "counts", [[2, 0, 1, 1], [0, 3, 0, 2], [1, 1, 1, 2], [0, 0, 0, 3]], ids=str
)
def test_four_ranks_equal_one_whatever_the_step(counts: list[int], tmp_path: pathlib.Path) -> None:
    cases = problems(counts)
    found = ranks.run(4, cases, tmp_path)
    for name in cases:
        check_equal(found, name)


ERRORS = {
    "other_options": (
        "ValueError",
        r"(?s)alike on all ranks.*\n  lam: 0.1 on rank 0, 1.1 on rank 1\n",
    ),
    "other_shapes": (
        "ValueError",
        r"predictions must be alike.*\[3\] of torch.float64 on rank 0, \[2, 3\] of",
    ),
    "other_start": ("ValueError", r"1 of 5 differ, first 'model.body.weight'. At the start: wrap"),
    "around_ddp": ("ValueError", r"gradients were not summed: call ddp\(batch\), never ddp.module"),
    "compiled": ("ValueError", r"engine='compiled' makes one graph.* Use engine='batched', 'loop'"),
    "lazy": ("ValueError", r"no shape yet.* Give the widths"),
    "nothing": ("ValueError", r"batch is None on all ranks: at least one"),
    "twice_summed": (
        "ValueError",
        r"already brought these gradients together.* Leave sync_gradients",
    ),
    "apart_generators": (
        "ValueError",
        r"reg.generator must stand alike on all ranks.* Load the same",
    ),
    "watched": ("UserWarning", r"reg.monitor is not shown the steps of several processes"),
    "untouched": ("RuntimeError", r"modified by an inplace operation"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_came_and_what_to_do(two: list[dict[str, Any]], name: str) -> None:
    kind, text = ERRORS[name]
    for one in two:
        found = one[name]
        assert isinstance(found, Failed), found
        assert found.kind == kind, found.trace
        assert re.search(text, found.text), found.text


def test_an_option_of_the_first_step_is_named_too(two: list[dict[str, Any]]) -> None:
    text = two[0]["other_options"].text
    assert "regularizer.relation.weight: [3, 5] of torch.float64 on rank 0, [4, 5]" in text


def test_an_error_of_one_rank_reaches_the_others_at_once(two: list[dict[str, Any]]) -> None:
    assert (two[1]["one_misuses"].kind, two[0]["one_misuses"].kind) == ("TypeError", "LostRank")
    assert (two[1]["one_fails"].kind, two[0]["one_fails"].kind) == ("ValueError", "LostRank")
    assert "rank 0 of 2: rank 1 raised an error in this step" in two[0]["one_fails"].text
    assert "loss_fn must return a scalar" in two[1]["one_fails"].text


def test_parameters_can_be_made_alike(two: list[dict[str, Any]]) -> None:
    assert [one["broadcast_start"] for one in two] == [True, True]


def test_queries_are_chosen_as_rank_0_says(two: list[dict[str, Any]]) -> None:
    for one in two:
        found, expected = one["other_generators"]
        assert abs(found - expected) <= EXACT


def test_without_gradients(two: list[dict[str, Any]]) -> None:
    for one in two:
        assert max(one["looked_at"].values()) <= EXACT


def test_gradients_are_accumulated_without_being_summed_twice(two: list[dict[str, Any]]) -> None:
    assert max(one["accumulated"] for one in two) <= EXACT


def test_a_parameter_that_nobody_uses_has_no_gradient(two: list[dict[str, Any]]) -> None:
    assert [one["unused_anywhere"] for one in two] == [(True, True)] * 2


def test_tasks_are_dealt_out(two: list[dict[str, Any]]) -> None:
    assert [one["shares"] for one in two] == [[0, 1, 2], [1, 1, 3]]


def test_bytes_on_the_wire_are_those_counted_by_hand(two: list[dict[str, Any]]) -> None:
    """Tasks [3, 2], 6 queries of 2 inputs and 3 outputs, embeddings of 5, all float64."""
    other = {0: 1, 1: 0}
    tasks = {0: 3, 1: 2}
    for rank, one in enumerate(two):
        rows, numbers, text = one["counted"]
        mine, theirs = tasks[rank], tasks[other[rank]]
        # The rank with fewer tasks is filled up: 3 rows go either way.
        row = 8 * (5 + 6 * 2)
        assert rows["tasks"] == (1, 3 * row, 3 * row)
        # A mixture of each of the other's tasks goes there, one of each of mine comes.
        mixture = 8 * 6 * 3
        assert rows["mixtures"] == (1, theirs * mixture, mine * mixture)
        assert rows["gradients of mixtures"] == (1, mine * mixture, theirs * mixture)
        # Of a task's row only the embedding is wanted a gradient of: inputs are no parameters.
        assert rows["gradients of tasks"] == (1, theirs * 8 * 5, mine * 8 * 5)
        # Seven whole numbers about the rank, 75 about its tensors, a byte for every parameter.
        assert rows["headers"] == (3, 8 * 7 + 8 * (1 + 6 * 12 + 2) + 5, 8 * 7 + 8 * 75 + 5)
        assert rows["losses"] == (1, 8 * 3, 8 * 3)
        assert rows["gradients"] == (1, 8 * numbers, 8 * numbers)
        assert len(rows) == 7
        assert text.splitlines()[0].split() == ["purpose", "calls", "sent", "received"]
        assert str(sum(sent for _, sent, _ in rows.values())) in text.splitlines()[-1]


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
    with pytest.raises(ValueError, match="batch is None, which only a rank among several may"):
        step(None)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="WORLD_SIZE=4 says that this is one of 4 processes"):
        step(batch)


@pytest.mark.unchecked
def test_its_parts_are_checked() -> None:
    step, _ = made()
    with pytest.raises(
        TypeError, match=r"regularizer must be a TRLearner, got MAML.*learner first"
    ):
        tr.MetaStep(step.regularizer, step.learner)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"learner must be a trlearner Learner.*got Linear"):
        tr.MetaStep(torch.nn.Linear(1, 1), step.regularizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction must be 'auto', 'mean' or 'sum', got 'max'"):
        tr.MetaStep(step.learner, step.regularizer, reduction="max")  # type: ignore[arg-type]


def test_other_errors_pass_the_guard() -> None:
    with pytest.raises(RuntimeError, match="mine"), tr.distributed.guarded():
        raise RuntimeError("mine")
    lost = "a collective failed, so another rank has ended or is stuck"
    with pytest.raises(LostRank, match=lost), tr.distributed.guarded():
        raise RuntimeError("[gloo] Connection closed by peer")


# ---- torchrun --------------------------------------------------------------------------------


def example(arguments: list[str], processes: int = 0) -> list[str]:
    """The command of the example."""
    module = ["-m", "trlearner.integrations.examples.distributed", *arguments]
    if not processes:
        return [sys.executable, *module]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    launch += ["--master-port", str(ranks.free_port())]
    return [sys.executable, *launch, *module]


def test_the_example_under_torchrun_equals_one_process(tmp_path: pathlib.Path) -> None:
    said = []
    for processes in (0, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        options = ["--steps", "12", "--checkpoint", str(folder / "checkpoint.pt")]
        done = subprocess.run(
            example(options, processes),
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    losses = [[float(x) for x in re.findall(r"loss (\S+)", text)] for text in said]
    assert len(losses[0]) == len(losses[1]) >= 2
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-3, atol=0)
    assert "mixtures" in said[1] and "mixtures" not in said[0]


@pytest.mark.skipif(not DOCS.exists(), reason="the documentation lies beside the sources only")
def test_the_documentation_runs_under_torchrun(tmp_path: pathlib.Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "train.py").write_text("".join(blocks), "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "--master-port", str(ranks.free_port()), "train.py"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("torch.Size([5, 5])") == 3, done.stdout
    assert done.stdout.count("gradients (by DDP)") == 3


@pytest.mark.slow
def test_torchrun_ends_when_a_rank_is_killed_and_goes_on_when_run_again(
    tmp_path: pathlib.Path,
) -> None:
    psutil = pytest.importorskip("psutil")
    path = tmp_path / "checkpoint.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = partial(
        example, ["--steps", "300", "--checkpoint", str(path)], 2
    )  # of another port each time
    job = subprocess.Popen(
        command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    try:
        deadline = time.monotonic() + 90
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert path.exists()
        psutil.Process(job.pid).children()[-1].kill()
        job.communicate(timeout=90)
    finally:
        job.kill()
        job.communicate()
    assert job.returncode not in (None, 0)
    again = subprocess.run(command(), capture_output=True, text=True, timeout=180, env=environment)
    assert again.returncode == 0, again.stderr
    assert re.search(r"goes on at step [1-9]\d*", again.stdout), again.stdout
    assert "step 300" in again.stdout


# ---- a rank that is lost --------------------------------------------------------------------


def start(
    folder: pathlib.Path, ends: str = "", how: str = "ddp", timeout: float = 60, steps: int = 14
) -> list[subprocess.Popen[str]]:
    port = ranks.free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder.mkdir(exist_ok=True)
    words = [str(folder), str(steps), ends, how, str(timeout)]
    return [
        subprocess.Popen(
            [sys.executable, str(TESTS / "ranks.py"), str(rank), "3", str(port), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(3)
    ]


def ended(processes: list[subprocess.Popen[str]], within: float) -> list[str]:
    deadline, said = time.monotonic() + within, []
    try:
        for process in processes:
            said.append(process.communicate(timeout=max(1, deadline - time.monotonic()))[0])
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    job = start(folder, how="own")
    said = ended(job, within=90)
    assert [process.returncode for process in job] == [0] * 3, said
    return torch.load(folder / "end.pt")


@pytest.mark.parametrize("how", ["ddp", pytest.param("own", marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_job_which_goes_on_from_its_checkpoint(
    how: str, undisturbed: list[torch.Tensor], tmp_path: pathlib.Path
) -> None:
    job = start(tmp_path / "killed", "kill", how)
    said = ended(job, within=90)
    codes = [process.returncode for process in job]
    assert codes[1] == -signal.SIGKILL
    for rank in (0, 2):
        assert codes[rank] == 1, said[rank]
        last = said[rank].strip().splitlines()[-1]
        assert f"LostRank: rank {rank} of 3: " in last, said[rank]
        assert "another rank has ended or is stuck: it was killed" in last
        assert "start all of them again from the last checkpoint" in last
    assert not (tmp_path / "killed" / "end.pt").exists()
    resumed = start(tmp_path / "killed", how=how)
    said = ended(resumed, within=90)
    assert [process.returncode for process in resumed] == [0] * 3, said
    assert all(f"rank {rank} starts at step 6" in said[rank] for rank in range(3))
    found = torch.load(tmp_path / "killed" / "end.pt")
    for a, b in zip(found, undisturbed, strict=True):
        # DDP adds up in another order; our own sums are the same to the last bit.
        contracts.close(a, b, 1e-12 if how == "ddp" else 0.0)


@pytest.mark.slow
def test_a_rank_that_is_stuck_ends_the_job_within_the_time_out(tmp_path: pathlib.Path) -> None:
    job = start(tmp_path / "stuck", "stop", timeout=8)
    started = time.monotonic()
    try:
        said = [job[rank].communicate(timeout=90)[0] for rank in (0, 2)]
    finally:
        for process in job:
            process.kill()
            process.communicate()
    assert time.monotonic() - started < 60
    for text in said:
        assert "LostRank" in text.strip().splitlines()[-1], text
