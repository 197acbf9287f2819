"""`plot_memory`: what is drawn is what the memory answers."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import trlearner as tr

Figure = pytest.importorskip("matplotlib.figure", reason="it draws with matplotlib").Figure


def lines(tasks: int, seed: int = 0) -> tr.TaskBatch:
    g = torch.Generator().manual_seed(seed)
    x, slope = torch.rand(tasks, 15, 1, generator=g), torch.randn(tasks, 1, 1, generator=g)
    return tr.TaskBatch((x[:, :5], slope * x[:, :5]), (x[:, 5:], slope * x[:, 5:]))


def memory_of_lines(**options: object) -> tr.TaskMemory:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        memory = tr.TaskMemory(tr.MAML(nn.Linear(1, 1), lr=0.3, steps=2), **options)
    memory.remember(lines(12))
    return memory


def curves(figure: Figure) -> dict[str, np.ndarray]:
    """By label, what is drawn ``[points, 2]``."""
    [panel] = figure.axes
    return {line.get_label(): line.get_xydata() for line in panel.lines}


def close(curve: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> None:
    expected = torch.stack([x.flatten(), y.flatten()], 1).detach().numpy()
    np.testing.assert_allclose(curve, expected, atol=1e-6)


def test_every_curve_is_what_the_memory_answers() -> None:
    memory, new = memory_of_lines(share=0.8, neighbours=6), lines(1, 1)
    x = torch.linspace(-1, 2, 7)[None, :, None]
    figure = tr.plot_memory(memory, new.support, x, title="a line")
    assert isinstance(figure, Figure) and figure.axes[0].get_title() == "a line"
    drawn, answer = curves(figure), memory.adapt(new.support)
    mean, deviation = answer(x, std=True)
    close(drawn["shots"], *new.support.real(0))
    close(drawn["own model"], x, memory.learner.adapt(new.support, mse_loss)(x))
    close(drawn["with the memory, share 0.8"], x, mean)
    [band] = figure.axes[0].collections
    assert band.get_label() == "95 % band"
    ends = band.get_paths()[0].vertices
    for edge in (mean - 1.96 * deviation, mean + 1.96 * deviation):
        for point in torch.stack([x.flatten(), edge.flatten()], 1).numpy():
            assert np.abs(ends - point).sum(1).min() < 1e-5
    weights = answer.weights[0, :, 0]
    largest = weights.abs().argsort(descending=True)[:3]
    names = [f"model {int(answer.models[0, k])}: {float(weights[k]):+.2f}" for k in largest]
    assert list(drawn)[-3:] == names
    fast = memory.state_dict()["fast"]
    weight, bias = (next(t for n, t in fast.items() if n.endswith(e)) for e in ("weight", "bias"))
    for name, k in zip(names, largest, strict=True):
        j = int(answer.models[0, k])
        close(drawn[name], x, weight[j] * x[0] + bias[j])


def test_queries_with_labels_are_dots_and_curves_go_over_their_range() -> None:
    memory, new = memory_of_lines(), lines(1, 1)
    drawn = curves(tr.plot_memory(memory, new.support, new.query, models=0))
    close(drawn["queries"], *new.query.real(0))
    everything = torch.cat([new.support.x, new.query.x], 1)
    at = drawn["own model"][:, 0]
    assert (at[0], at[-1]) == pytest.approx((float(everything.min()), float(everything.max())))
    assert not any(name.startswith("model ") for name in drawn)
    alone = curves(tr.plot_memory(memory, new.support))["own model"][:, 0]
    low, high = float(new.support.x.min()), float(new.support.x.max())
    room = 0.25 * (high - low)
    assert (len(alone), alone[0], alone[-1]) == pytest.approx((200, low - room, high + room))


def test_by_softmax_there_is_no_band_and_without_a_share_no_model() -> None:
    new = lines(1, 1)
    figure = tr.plot_memory(memory_of_lines(rule="softmax"), new.support)
    assert not figure.axes[0].collections
    assert sum(name.startswith("model ") for name in curves(figure)) == 3
    memory = memory_of_lines(share=0.0)
    figure = tr.plot_memory(memory, new.support)
    drawn = curves(figure)
    assert not figure.axes[0].collections
    assert list(drawn) == ["shots", "own model", "with the memory, share 0"]
    np.testing.assert_array_equal(drawn["own model"], drawn["with the memory, share 0"])


def test_a_memory_of_callables_takes_an_own_model() -> None:
    known, new = lines(5), lines(1, 1)
    memory = tr.TaskMemory()
    slopes = (known.query.y / known.query.x).mean(1).flatten().tolist()
    memory.remember_models([lambda x, s=s: s * x for s in slopes], known)
    drawn = curves(tr.plot_memory(memory, new.support, own=lambda x: 3 * x))
    at = torch.tensor(drawn["own model"][:, :1])
    close(drawn["own model"], at, 3 * at)
    assert "own model" not in curves(tr.plot_memory(memory, new.support))


def test_a_model_that_is_far_off_flattens_nothing() -> None:
    new, memory = lines(1, 1), tr.TaskMemory(noise=1.0, share=0.5)
    memory.remember_models([lambda x: x, lambda x: 1e3 + x, lambda x: -x])
    low, high = tr.plot_memory(memory, new.support, own=lambda x: x).axes[0].get_ylim()
    assert high - low < 1e3


@pytest.mark.unchecked
def test_what_cannot_be_drawn_is_told() -> None:
    memory, new = memory_of_lines(), lines(4, 1)
    with pytest.raises(ValueError, match=r"support must be one task .* got inputs \[4, 5, 1\]"):
        tr.plot_memory(memory, new.support)
    wide = (torch.rand(1, 5, 2), torch.rand(1, 5, 1))
    with pytest.raises(ValueError, match="inputs of more dimensions cannot be drawn"):
        tr.plot_memory(memory, wide)
    with pytest.raises(ValueError, match="support must be one task .* whose inputs and labels"):
        tr.plot_memory(memory, (new.support.x[:1], torch.zeros(1, 5, dtype=torch.long)))
    with pytest.raises(ValueError, match=r"query must be inputs \[1, 'points', 1\] like those"):
        tr.plot_memory(memory, new.support[:1], new.query.x)
    with pytest.raises(ValueError, match="query must be one task"):
        tr.plot_memory(memory, new.support[:1], new.query)
    with pytest.raises(ValueError, match="the memory is empty. Call memory.remember"):
        tr.plot_memory(tr.TaskMemory(memory.learner), new.support[:1])


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, new = memory_of_lines(), lines(1, 1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'trlearner\[experiments\]'"):
        tr.plot_memory(memory, new.support)
