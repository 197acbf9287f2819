"""Where things run and lie, checked before anything is made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from trlearner.experiments.data.setting import Range, check, given

from trlearner.engines.choose import check_name

CORES = Range(1, 1024)
"""Threads of a process, and processes of a sweep."""


@dataclass(frozen=True)
class Where:
    """Where and how to run, and where things are: nothing that the result depends on.

    Attributes:
        out: Results go to OUT/PROBLEM/HASH.
        data_dir: Where real data lies; TRLEARNER_DATA by default.
        device: E.g. cpu or cuda.
        engine: As trlearner's learners take it.
        threads: Of torch; small networks gain nothing from a second one.
        memory: Also remember training tasks and test with them (memory.json). A finished run is not
            trained again.
    """

    out: Path = Path("runs")
    data_dir: Path | None = field(
        default_factory=lambda: Path(d) if (d := os.environ.get("TRLEARNER_DATA")) else None
    )
    device: str = "cpu"
    engine: str = "auto"
    threads: int = 1
    memory: bool = False

    def check(self) -> None:
        """Refuses what is not there.

        Raises:
            ValueError: It names the setting, what was given, and what to do.
        """
        check("threads", self.threads, int, CORES)
        check("memory", self.memory, bool)
        check_name(self.engine)
        check_device(self.device)
        check_out(self.out)
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise ValueError(
                "data_dir (--data-dir or TRLEARNER_DATA) must be a folder, got "
                f"{given(str(self.data_dir))}, which is none. Name the folder with the data, or leave it out."
            )


def check_device(name: str) -> None:
    """Refuses a device that this machine has not.

    Raises:
        ValueError: The text says which there are.
    """
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    there += ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name not in there:
        raise ValueError(
            f"device must be one that this machine has ({', '.join(there)}), got {given(name)}. "
            "A GPU needs a build of torch for it."
        )


def check_out(folder: Path) -> None:
    """Refuses a folder that cannot be made, or not be written to.

    Raises:
        ValueError: The text says what is in the way.
    """
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # judged by what it would lie in
    except OSError as error:
        raise ValueError(
            f"out must be a folder, got {given(str(folder))}: {error.strerror}. Choose another --out."
        ) from None
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise ValueError(
            f"out must be a folder, or a new one in a folder, got {folder}, where {nearest} is none. "
            "Choose another --out."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(
            f"out must be a folder that you may write to, got {folder}, where {nearest} is none. "
            "Choose another --out."
        )
