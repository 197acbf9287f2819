"""Screenshots of what a monitor shows, made with the real TensorBoard in headless Chromium.

    python docs/screenshots.py FOLDER

Trains for two minutes on a mixture of families of curves, starts TensorBoard on a free port of this machine
and leaves one PNG for each of its pages. Needs ``chromium`` on the PATH.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs.build import make_learner, make_problem, make_regularizer

import trlearner as tr

STEPS = 2000
PAGES = {
    "curves": "custom_scalars",
    "pictures": "images",
    "histograms": "histograms",
    "text": "text",
    "projector": "projector",
    "hparams": "hparams",
}


def train(folder: Path) -> None:
    """A run with a monitor."""
    config = Config("regression/families", normalize="softmax", tasks=32, shots=10, steps=STEPS)
    torch.manual_seed(config.seed)
    problem = make_problem(config, None, "cpu")
    learner = make_learner(config, problem, "batched")
    reg = make_regularizer(config, problem, learner, "cpu")
    optimizer = torch.optim.Adam([*learner.parameters(), *reg.parameters()], lr=3e-3)
    generator = torch.Generator().manual_seed(config.seed)
    with SummaryWriter(str(folder)) as writer:
        reg.monitor = tr.RelationMonitor(writer, every=20, families=str)
        for _ in range(config.steps):
            out = reg(learner, problem.source.sample("train", config.tasks, generator))
            optimizer.zero_grad()
            out.loss.backward()
            torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            optimizer.step()
        reg.monitor.hparams({"lam": config.lam}, {"last loss": out.task_loss.item()})


def shoot(address: str, page: str, file: Path) -> None:
    """One page as a PNG, once its pictures have had time to arrive."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("chromium is not on the PATH: install it with your system's package manager.")
    flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --enable-unsafe-swiftshader"
    size = ["--window-size=1600,1500", "--virtual-time-budget=20000", f"--screenshot={file}"]
    command = [browser, *flags.split(), *size, f"{address}/#{page}"]
    subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)


def main(folder: Path) -> None:
    """Trains, serves and shoots."""
    runs = folder / "runs"
    if not runs.exists():
        train(runs / "families")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)]
    with subprocess.Popen([*command, "--load_fast=false"], stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(300):
                try:
                    if b"families" in urllib.request.urlopen(f"{address}/data/runs").read():
                        break
                except OSError:
                    time.sleep(0.2)
            for name, page in PAGES.items():
                shoot(address, page, folder / f"{name}.png")
                print(folder / f"{name}.png")
        finally:
            server.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
