"""The experiment that compares M with the truth."""

import json
import pathlib

import numpy as np
import pytest
import torch
from trlearner.experiments.data.regression import curve
from trlearner.experiments.evidence import relations
from trlearner.experiments.presets.config import Config
from trlearner.experiments.runs.build import make_problem


def test_it_prints_a_table_and_leaves_its_numbers(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relations, "TASKS", 12)
    relations.main(["--seeds", "2", "--steps", "3", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| of 12 unseen curves |" in printed and "| curve correlation |" in printed
    rows = json.loads((tmp_path / "families.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0]["untrained"] != rows[0]["trained"]
    assert rows[0]["truth"]["curve correlation"] == pytest.approx(1.0)
    assert (tmp_path / "trained.png").exists() and (tmp_path / "untrained.png").exists()


def test_nearness_is_that_of_the_very_curves_of_the_tasks() -> None:
    source = make_problem(Config("regression/families", shots=10), None, "cpu").source
    batch, near = relations.unseen(source)
    drawn = source.draw(relations.TASKS, torch.Generator().manual_seed(1), shifted=False)
    family = source.families[int(drawn[0, 0])].name
    assert batch.ids[0] == family
    noisy = batch.support.y[0, :, 0]
    exact = curve(family, drawn[:1, 1:], batch.support.x[:1, :, 0])[0]
    assert (noisy - exact).abs().max() < 5 * source.noise
    x = torch.linspace(-5, 5, 200)[None]
    a, b = (source.values(drawn[i : i + 1], x)[0].double() for i in (0, 1))
    assert near[0, 1] == pytest.approx(-(a - b).square().mean().sqrt().item(), abs=1e-4)
    assert np.diag(near) == pytest.approx(np.zeros(len(near)), abs=1e-4)
