"""MAML with TRLearner on several processes; run again after a failure, it goes on from its checkpoint.

``torchrun --nproc-per-node 2 -m trlearner.integrations.examples.distributed``
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from trlearner.integrations.examples.sinusoids import meta_batch, network, stacked

import trlearner as tr
from trlearner.distributed import guarded, own_tasks


def tasks(step: int) -> tr.TaskBatch:
    """The meta-batch of a step: the same on all ranks, and after a restart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step)
        x, y, xq, yq = stacked(meta_batch(tasks=5))
    return tr.TaskBatch(support=(x, y), query=(xq, yq))


def save(path: Path, step: int, **parts: object) -> None:
    """Replaces the checkpoint, which is whole at any time."""
    state = {name: part.state_dict() for name, part in parts.items()}  # type: ignore[attr-defined]
    torch.save({"step": step, **state}, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def train(steps: int, path: Path) -> None:
    torch.manual_seed(0)
    learner = tr.MAML(network(), lr=0.02, steps=2)
    encoder = tr.LabelledEncoder(None, dim=32, features=1, targets=1)
    reg = tr.TRLearner(encoder=encoder, queries=0.5)
    optimizer = torch.optim.Adam([*learner.parameters(), *reg.parameters()])
    start = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        start = saved["step"]
        for name, part in {"learner": learner, "reg": reg, "optimizer": optimizer}.items():
            part.load_state_dict(saved[name])
    several = dist.is_initialized()
    step: torch.nn.Module = tr.MetaStep(learner, reg)
    if several:
        step = DistributedDataParallel(step)
    first = not several or dist.get_rank() == 0
    if first and start:
        print(f"goes on at step {start}", flush=True)
    for number in range(start + 1, steps + 1):
        optimizer.zero_grad()
        out = step(own_tasks(tasks(number)))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_([*learner.parameters(), *reg.parameters()], 1.0)
        optimizer.step()
        if first and (number % 50 == 0 or number in (1, steps)):
            print(f"step {number}: loss {out.loss.item():.6f}", flush=True)
            save(path, number, learner=learner, reg=reg, optimizer=optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=201)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    options = parser.parse_args()
    several = "WORLD_SIZE" in os.environ  # torchrun sets it
    if several:
        dist.init_process_group("gloo")  # "nccl" on GPUs
    with guarded():
        train(options.steps, options.checkpoint)
    if several:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
