"""`plot_relations`, as its user calls it."""

import pathlib

import numpy as np
import pytest
import torch

import trlearner as tr
from trlearner.diagnostics.monitor.heatmap import heatmap


def test_it_is_the_heat_map_in_the_order_that_was_asked_for(tmp_path: pathlib.Path) -> None:
    m = torch.tensor([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]], requires_grad=True)
    names = ["sine", "line", "sine"]
    given = np.asarray(tr.plot_relations(m, names, scale=1))
    np.testing.assert_array_equal(given, heatmap(m.detach().double().numpy(), names))
    order = [0, 2, 1]
    together = np.asarray(tr.plot_relations(m, names, cluster=True, scale=1))
    sorted_m = m.detach().double().numpy()[np.ix_(order, order)]
    np.testing.assert_array_equal(together, heatmap(sorted_m, ["sine", "sine", "line"]))
    tr.plot_relations(m).save(tmp_path / "m.pdf")
    assert (tmp_path / "m.pdf").stat().st_size > 1000


@pytest.mark.unchecked
def test_what_is_no_square_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"relations must be \[tasks, tasks\], got \(2, 3\)"):
        tr.plot_relations(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="names must name all 2 tasks, got 1"):
        tr.plot_relations(torch.zeros(2, 2), names=["a"])
