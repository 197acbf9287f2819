"""A rank that is lost ends the job, which goes on from its checkpoint."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import contracts
import pytest
import torch
import torch.distributed as dist
from rank_problem import Problem
from ranks import Job, free_port, join
from torch.nn.parallel import DistributedDataParallel

import trlearner as tr
from trlearner.distributed import LostRank, guarded, own_tasks, sync_gradients

STEPS, MIDDLE = 14, 8


def train(rank: int, port: int, folder: str, ends: str, how: str, timeout: float = 60) -> None:
    """Trains on three ranks; with `ends` rank 1 is killed, or stopped, in the middle of a step."""
    join(rank, 3, port, timeout)
    work(rank, Path(folder), ends, how)
    dist.destroy_process_group()


def work(rank: int, folder: Path, ends: str, how: str) -> None:
    """Gradients are brought together by "ddp", by "own" call, or are there already: "alone"."""
    path = folder / "checkpoint.pt"
    learner, reg = Problem([], options={"queries": 0.5}).made()
    optimizer = torch.optim.Adam([*learner.parameters(), *reg.parameters()], lr=0.01)
    state = {"learner": learner, "reg": reg, "optimizer": optimizer}
    start = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        start = saved["step"]
        for name, thing in state.items():
            thing.load_state_dict(saved[name])
    step = tr.MetaStep(learner, reg)
    run = DistributedDataParallel(step) if how == "ddp" else step
    print(f"rank {rank} starts at step {start}", flush=True)
    with guarded():
        for number in range(start, STEPS):
            optimizer.zero_grad()
            out = run(own_tasks(contracts.regression_batch(seed=number, tasks=4)))
            if number == MIDDLE and rank == 1 and ends:
                os.kill(os.getpid(), signal.SIGKILL if ends == "kill" else signal.SIGSTOP)
            out.loss.backward()
            if how == "own":
                sync_gradients(learner, reg)
            optimizer.step()
            if rank == 0 and (number + 1) % 3 == 0:
                saved = {name: thing.state_dict() for name, thing in state.items()}
                torch.save({"step": number + 1, **saved}, path.with_suffix(".new"))
                path.with_suffix(".new").replace(path)
    if rank == 0:
        torch.save([*learner.parameters(), *reg.parameters()], folder / "end.pt")


def job(folder: Path, ends: str = "", how: str = "ddp", timeout: float = 60) -> Job:
    return Job(3, folder, train, free_port(), str(folder), ends, how, timeout)


def end(folder: Path) -> list[torch.Tensor]:
    return torch.load(folder / "end.pt")


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    """The parameters that training must come to."""
    folder = tmp_path_factory.mktemp("alone")
    work(0, folder, "", "alone")
    return end(folder)


def killed_and_resumed(folder: Path, how: str) -> list[torch.Tensor]:
    killed = job(folder, "kill", how)
    said = killed.ended(within=90)
    assert killed.codes == [1, -signal.SIGKILL, 1], said
    for rank in (0, 2):
        last = said[rank].strip().splitlines()[-1]
        assert f"LostRank: rank {rank} of 3: " in last, said[rank]
        assert "another rank has ended or is stuck: it was killed" in last
        assert "start all of them again from the last checkpoint" in last
    assert not (folder / "end.pt").exists()
    resumed = job(folder, how=how)
    said = resumed.ended(within=90)
    assert resumed.codes == [0] * 3, said
    assert all(f"rank {rank} starts at step 6" in said[rank] for rank in range(3))
    return end(folder)


@pytest.mark.full
@pytest.mark.parametrize("how", ["ddp", "own"])
def test_a_killed_rank_ends_the_job_which_goes_on_from_its_checkpoint(
    how: str, in_one_process: list[torch.Tensor], tmp_path: Path
) -> None:
    found = killed_and_resumed(tmp_path, how)
    for a, b in zip(found, in_one_process, strict=True):
        contracts.close(a, b, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "own"])
def test_a_resumed_run_is_the_undisturbed_one(how: str, tmp_path: Path) -> None:
    whole = job(tmp_path / "whole", how=how)
    assert whole.ended(within=90) and whole.codes == [0] * 3
    found = killed_and_resumed(tmp_path / "killed", how)
    for a, b in zip(found, end(tmp_path / "whole"), strict=True):
        # DDP adds up in another order after a restart; our own sums are the same to the last bit.
        contracts.close(a, b, 1e-12 if how == "ddp" else 0.0)


@pytest.mark.full
def test_a_rank_that_is_stuck_ends_the_job_within_the_time_out(tmp_path: Path) -> None:
    started, stuck = time.monotonic(), job(tmp_path, "stop", timeout=6)
    said = stuck.ended(within=60, waits_for=[0, 2])
    assert time.monotonic() - started < 50
    for rank in (0, 2):
        assert stuck.codes[rank] == 1
        assert "LostRank" in said[rank].strip().splitlines()[-1], said[rank]


def test_other_errors_pass_the_guard() -> None:
    with pytest.raises(RuntimeError, match="mine"), guarded():
        raise RuntimeError("mine")
    lost = "a collective failed, so another rank has ended or is stuck"
    with pytest.raises(LostRank, match=lost), guarded():
        raise RuntimeError("[gloo] Connection closed by peer")
