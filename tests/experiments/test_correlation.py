import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr
from trlearner.experiments.data.correlation import R2, above, median, squared_correlation

import trlearner as tr


def samples(y, mask=None):
    return tr.Samples(torch.zeros(*y.shape[:2], 1), y, mask)


def slow(predictions, query):
    """One task after the other, by SciPy."""
    found = []
    for task in range(len(query)):
        _, y = query.real(task)
        mask = query.mask
        p = predictions[task] if mask is None else predictions[task][mask[task]]
        found.append(pearsonr(p.flatten().numpy(), y.flatten().numpy())[0] ** 2)
    return torch.tensor(np.array(found))


@pytest.mark.parametrize("shape", [(5, 12), (5, 12, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_scipys_correlation_squared(shape, masked):
    generator = torch.Generator().manual_seed(0)
    y, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(12) < torch.tensor([[12], [3], [2], [7], [11]]) if masked else None
    predictions = 3 - 2 * y + noise
    query = samples(y, mask)
    found = squared_correlation(predictions, query)
    torch.testing.assert_close(found, slow(predictions, query), rtol=1e-9, atol=1e-12)


@given(scale=st.floats(-1e3, 1e3).filter(lambda s: abs(s) > 1e-3), shift=st.floats(-10, 10))
def test_scale_and_offset_of_predictions_do_not_count(scale, shift):
    generator = torch.Generator().manual_seed(0)
    y, p = (torch.randn(4, 20, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(
        squared_correlation(scale * p + shift, samples(y)),
        squared_correlation(p, samples(y)),
        rtol=1e-6,
        atol=1e-9,
    )


def test_what_stands_under_the_mask_does_not_count():
    generator = torch.Generator().manual_seed(0)
    y, p = (torch.randn(3, 6, generator=generator) for _ in range(2))
    mask = torch.arange(6) < 4
    query = samples(y, mask.expand(3, 6))
    other = torch.where(mask, p, 1e6)
    torch.testing.assert_close(
        squared_correlation(p, query), squared_correlation(other, query), rtol=0, atol=0
    )


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -7.3])
def test_constant_predictions_or_targets_explain_nothing(constant):
    flat, varying = torch.full((1, 7), constant), torch.linspace(0, 1, 7)[None]
    noise = constant * (1 + 1e-7 * torch.tensor([1.0, -1, 1, 0, -1, 0, 1]))[None]
    for p, y in ((flat, varying), (varying, flat), (flat, flat), (noise, varying)):
        assert squared_correlation(p, samples(y)).tolist() == [0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(pearsonr(flat[0], varying[0])[0])  # hence the rule


def test_one_query_explains_nothing():
    y = torch.randn(2, 3)
    mask = torch.tensor([[True, False, False]] * 2)
    assert squared_correlation(2 * y, samples(y, mask)).tolist() == [0.0, 0.0]


def test_a_perfect_prediction_is_at_most_one():
    y = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    found = squared_correlation(5 * y - 2, samples(y))
    assert float(found.max()) <= 1.0
    torch.testing.assert_close(found, torch.ones(50), rtol=0, atol=1e-5)


def test_predictions_that_are_no_numbers_are_seen():
    y = torch.randn(1, 5)
    assert squared_correlation(torch.full((1, 5), torch.nan), samples(y)).isnan().all()


def test_summaries():
    values = torch.tensor([0.1, 0.3, 0.31, 0.9])
    assert list(R2.summaries) == ["mean", "median", "count above 0.3"]
    assert [float(f(values)) for f in R2.summaries.values()] == pytest.approx([0.4025, 0.305, 2.0])
    assert float(median(values[:3])) == pytest.approx(0.3)
    assert float(above(torch.zeros(3))) == 0.0
    assert R2.better == "higher"
