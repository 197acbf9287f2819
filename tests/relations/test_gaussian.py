"""The rule by which remembered models predict: against loops, a dense Gaussian process, and properties."""

import itertools
import resource
import time

import pytest
import reference
import torch
from torch import Tensor

from trlearner.relations.gaussian import (
    best_models,
    gaussian_posterior,
    posterior_mean,
    posterior_variance,
)
from trlearner.relations.posterior import Posterior

T, M, S, Q, K = 3, 9, 4, 5, 6
NOISE, SPREAD = 0.3, 0.7
OUTPUTS = [(), (2,), (2, 3)]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
close = torch.testing.assert_close


class Case:
    """Random curves at a few points, with a kernel and a prior mean."""

    def __init__(self, outputs: tuple[int, ...] = (), seed: int = 0, shots: int = S) -> None:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        self.F, self.f = draw(T, M, shots, *outputs), draw(T, M, Q, *outputs)
        self.y = draw(T, shots, *outputs)
        self.prior, self.prior_queries = draw(T, shots, *outputs), draw(T, Q, *outputs)
        self.mask = torch.ones(T, shots, dtype=torch.bool)
        x = draw(T, shots + Q)
        k = (-(x[:, :, None] - x[:, None]).square()).exp()
        self.kernel, self.cross = k[:, :shots, :shots], k[:, shots:, :shots]
        self.itself = k.diagonal(dim1=1, dim2=2)[:, shots:]

    def posterior(self, **given: object) -> Posterior:
        options = {"noise": NOISE, "spread": SPREAD, "neighbours": K, **given}
        return gaussian_posterior(self.F, self.y, **options)

    def answer(self, posterior: Posterior) -> tuple[Tensor, Tensor]:
        """Mean and variance."""
        f, with_kernel = chosen(self.f, posterior), posterior.kernel_scale is not None
        cross = self.cross if with_kernel else None
        prior = self.prior_queries if posterior.around_prior else None
        itself = self.itself if with_kernel else None
        return (
            posterior_mean(posterior, f, prior=prior, kernel=cross),
            posterior_variance(posterior, f, kernel=cross, kernel_itself=itself),
        )


def chosen(f: Tensor, posterior: Posterior) -> Tensor:
    return torch.stack([f[i][posterior.models[i]] for i in range(len(f))])


def by_loops(
    case: Case, K: int, h: float, noise: float, prior: bool, b: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, mean and variance of every task, output by output."""
    found: list[list[list[Tensor]]] = [[], [], []]
    for i in range(T):
        real = case.mask[i]
        y = case.y[i][real].reshape(int(real.sum()), -1)
        F = case.F[i][:, real].reshape(M, len(y), -1)
        f = case.f[i].reshape(M, Q, -1)
        near = reference.nearest_models(list(F), y, K)
        rows: list[list[Tensor]] = [[], [], []]
        for o in range(y.shape[1]):
            priors = None
            if prior:
                own, asked = case.prior[i][real].reshape(len(y), -1), case.prior_queries[i]
                priors = own[:, o], asked.reshape(Q, -1)[:, o]
            kernels = None
            if b is not None:
                on_support = b * case.kernel[i][real][:, real]
                kernels = on_support, b * case.cross[i][:, real], b * case.itself[i]
            one = reference.remembered(
                [F[j, :, o] for j in near],
                [f[j, :, o] for j in near],
                y[:, o],
                h,
                noise,
                priors,
                kernels,
            )
            for row, value in zip(rows, one, strict=True):
                row.append(value)
        for all_rows, row in zip(found, rows, strict=True):
            all_rows.append(torch.stack(row, -1))
    outputs = case.y.shape[2:]
    w, mean, variance = (torch.stack(rows) for rows in found)
    return tuple(t.reshape(*t.shape[:2], *outputs) for t in (w, mean, variance))


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("b", [None, 0.8])
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("neighbours", [1, K, 100])
def test_answers_are_those_of_the_loops(
    outputs: tuple[int, ...], b: float | None, prior: bool, neighbours: int
) -> None:
    case = Case(outputs)
    case.mask[1, 2:] = False
    case.mask[2, 0] = False
    posterior = case.posterior(
        neighbours=neighbours,
        mask=case.mask,
        prior=case.prior if prior else None,
        kernel=None if b is None else case.kernel,
        kernel_scale=1.0 if b is None else b,
    )
    w, mean, variance = by_loops(case, neighbours, SPREAD, NOISE, prior, b)
    found = case.answer(posterior)
    close(found[0], mean, **CLOSE)
    close(found[1], variance, **CLOSE)
    if not prior:
        close(posterior.weights, w, **CLOSE)


@pytest.mark.parametrize("prior", [False, True])
def test_coefficients_are_the_formula(prior: bool) -> None:
    case = Case()
    posterior = case.posterior(prior=case.prior if prior else None)
    for i in range(T):
        near = reference.nearest_models(list(case.F[i]), case.y[i], K)
        assert posterior.models[i].tolist() == near
        F = [case.F[i, j] for j in near]
        w = list(posterior.weights[i])
        m = case.prior[i] if prior else sum(a * b for a, b in zip(w, F, strict=True))
        A = reference.models_covariance(F, F, SPREAD) + NOISE * torch.eye(S).double()
        expected = reference.remembered_coefficients(F, case.y[i], m, w, A, SPREAD)
        close(posterior.coefficients[i], expected, **CLOSE)


def dense(case: Case, m: Tensor, m_queries: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """A textbook Gaussian process with all models' covariance (Rasmussen and Williams, eq. 2.25 f.)."""
    both = torch.cat([case.F, case.f], 2)
    both = both - both.mean(1, keepdim=True)
    C = h**2 * torch.einsum("tmx,tmz->txz", both, both) / both.shape[1]
    shots = case.y.shape[1]
    inverse = torch.linalg.inv(C[:, :shots, :shots] + NOISE * torch.eye(shots).double())
    gain = C[:, shots:, :shots] @ inverse
    mean = m_queries + (gain @ (case.y - m)[..., None])[..., 0]
    variance = C[:, shots:, shots:] - gain @ C[:, :shots, shots:]
    return mean, variance.diagonal(dim1=1, dim2=2)


def test_with_all_models_and_h_1_the_mean_is_a_gaussian_process() -> None:
    case = Case()
    posterior = case.posterior(spread=1.0, neighbours=M)
    F, f = chosen(case.F, posterior), chosen(case.f, posterior)
    w = posterior.weights[..., None]
    expected, _ = dense(case, (w * F).sum(1), (w * f).sum(1), 1.0)
    close(case.answer(posterior)[0], expected, **CLOSE)


def test_with_one_model_left_the_variance_is_a_gaussian_process() -> None:
    """All weight on one model: no spread between means remains."""
    case = Case()
    case.F[:, 1:] += 100 * torch.arange(1, M).double()[None, :, None]
    case.y = case.F[:, 0] + 1e-3
    posterior = case.posterior(spread=1e-3, neighbours=M)
    assert (posterior.weights[:, 0] > 1 - 1e-12).all()
    mean, variance = dense(case, case.F[:, 0], case.f[:, 0], 1e-3)
    found = case.answer(posterior)
    close(found[0], mean, **CLOSE)
    close(found[1], variance, **CLOSE)


def test_around_a_prior_mean_without_models_it_is_a_gaussian_process_on_residuals() -> None:
    case = Case((2,))
    b = 0.8
    none, none_queries = case.F[:, :0], case.f[:, :0]
    posterior = gaussian_posterior(
        none, case.y, noise=NOISE, prior=case.prior, kernel=case.kernel, kernel_scale=b
    )
    assert posterior.coefficients.shape == (T, 0, 2)
    mean = posterior_mean(posterior, none_queries, prior=case.prior_queries, kernel=case.cross)
    variance = posterior_variance(
        posterior, none_queries, kernel=case.cross, kernel_itself=case.itself
    )
    A = b * case.kernel + NOISE * torch.eye(S).double()
    gain = b * case.cross @ torch.linalg.inv(A)
    close(mean, case.prior_queries + gain @ (case.y - case.prior), **CLOSE)
    explained = (gain * b * case.cross).sum(2)
    close(variance, (b * case.itself - explained)[..., None].expand(-1, -1, 2), **CLOSE)
    close(case.posterior(neighbours=0, prior=case.prior).coefficients, posterior.coefficients)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_coefficients_sum_to_one_and_around_a_prior_to_zero(outputs: tuple[int, ...]) -> None:
    case = Case(outputs)
    ones = torch.ones(T, *outputs).double()
    close(case.posterior().coefficients.sum(1), ones, **CLOSE)
    close(case.posterior().weights.sum(1), ones, **CLOSE)
    close(case.posterior(prior=case.prior).coefficients.sum(1), 0 * ones, **CLOSE)


def test_without_spread_it_is_the_softmax_rule() -> None:
    case = Case()
    posterior = case.posterior(spread=0.0, neighbours=M)
    errors = (chosen(case.F, posterior) - case.y[:, None]).square().sum(2)
    close(posterior.coefficients, (-errors / (2 * NOISE)).softmax(1), **CLOSE)


def test_permuting_models_permutes_coefficients() -> None:
    case, other = Case((2,)), Case((2,))
    order = torch.randperm(M, generator=torch.Generator().manual_seed(3))
    other.F, other.f = case.F[:, order], case.f[:, order]
    posterior, permuted = case.posterior(), other.posterior()
    close(order[permuted.models], posterior.models)
    close(permuted.coefficients, posterior.coefficients, **CLOSE)
    close(other.answer(permuted), case.answer(posterior), **CLOSE)


def test_answers_scale_and_shift_with_labels_and_predictions() -> None:
    case, other = Case(), Case()
    scale, shift = 3.0, 7.0
    for name in ("F", "f", "y"):
        setattr(other, name, scale * getattr(case, name) + shift)
    mean, variance = case.answer(case.posterior())
    found = other.answer(other.posterior(noise=scale**2 * NOISE))
    close(found[0], scale * mean + shift, **CLOSE)
    close(found[1], scale**2 * variance, **CLOSE)


@pytest.mark.parametrize("outputs", OUTPUTS[:2])
def test_masks_are_fewer_shots_whatever_stands_under_them(outputs: tuple[int, ...]) -> None:
    case, short = Case(outputs), Case(outputs)
    keep = torch.tensor([0, 2])
    case.mask[:, [1, 3]] = False
    for name in ("F", "y", "prior", "kernel", "cross"):
        value = getattr(case, name)
        axes = {"F": [2], "y": [1], "prior": [1], "kernel": [1, 2], "cross": [2]}[name]
        kept = value
        for axis in axes:
            kept = kept.index_select(axis, keep)
            value.index_fill_(axis, torch.tensor([1, 3]), torch.nan)
        setattr(short, name, kept)
    for options in ({}, {"prior": "prior"}, {"kernel": "kernel"}):
        padded, fewer = (
            one.posterior(**{n: getattr(one, a) for n, a in options.items()}, mask=mask)
            for one, mask in ((case, case.mask), (short, None))
        )
        close(padded.coefficients, fewer.coefficients, **CLOSE)
        close(case.answer(padded), short.answer(fewer), **CLOSE)


def test_one_shot() -> None:
    """Scalars: A = h^2 var(F) + noise, and so on."""
    case = Case(shots=1)
    posterior = case.posterior(neighbours=M)
    F, y = chosen(case.F, posterior)[:, :, 0], case.y
    A = SPREAD**2 * F.var(1, correction=0, keepdim=True) + NOISE
    w = (-0.5 * (y - F).square() / A).softmax(1)
    gap = y - (w * F).sum(1, keepdim=True)
    c = w + SPREAD**2 / M * (F - F.mean(1, keepdim=True)) * gap / A
    close(posterior.coefficients, c, **CLOSE)


def test_outputs_are_apart_but_for_the_choice() -> None:
    case, first = Case((2,)), Case((2,))
    both = case.posterior(neighbours=M)
    first.F, first.f, first.y = case.F[..., 0], case.f[..., 0], case.y[..., 0]
    alone = first.posterior(neighbours=M)
    where = both.models.argsort(1), alone.models.argsort(1)
    found = both.coefficients[..., 0].gather(1, where[0]), alone.coefficients.gather(1, where[1])
    close(*found, **CLOSE)
    close(case.answer(both)[1][..., 0], first.answer(alone)[1], **CLOSE)


def test_numbers_may_differ_by_task_and_output() -> None:
    case = Case((2,))
    noise = torch.rand(T, 2).double() + 0.1
    spread, b = torch.tensor([0.5, 1.5]), torch.rand(T, 1).double()
    options = {"neighbours": M, "kernel": case.kernel}
    together = case.answer(case.posterior(noise=noise, spread=spread, kernel_scale=b, **options))
    for i in range(T):
        for o in range(2):
            numbers = {
                "noise": float(noise[i, o]),
                "spread": float(spread[o]),
                "kernel_scale": float(b[i, 0]),
            }
            alone = case.answer(case.posterior(**numbers, **options))
            for all_together, one in zip(together, alone, strict=True):
                close(all_together[i, :, o], one[i, :, o], **CLOSE)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e200])
def test_a_model_that_exploded_is_left_out(bad: float) -> None:
    case, without = Case(), Case()
    case.F[0, 2, 1] = bad
    case.f[0, 2] = torch.nan
    assert 2 not in best_models(case.F, case.y, M - 1)[0]
    posterior = case.posterior(neighbours=M)
    assert posterior.models[0, -1] == 2 and posterior.coefficients[0, -1] == 0
    assert posterior.usable[0].tolist() == [True] * (M - 1) + [False]
    keep = [j for j in range(M) if j != 2]
    without.F, without.f = case.F[:, keep], case.f[:, keep]
    fewer = without.posterior(neighbours=M)
    close(posterior.coefficients[0, :-1], fewer.coefficients[0], **CLOSE)
    for found, expected in zip(case.answer(posterior), without.answer(fewer), strict=True):
        close(found[0], expected[0], **CLOSE)


def test_without_a_usable_model_the_task_says_nothing_and_others_are_as_before() -> None:
    case, whole = Case(), Case()
    case.F[1] = torch.nan
    posterior, before = case.posterior(), whole.posterior()
    assert not posterior.usable[1].any() and (posterior.coefficients[1] == 0).all()
    mean, variance = case.answer(posterior)
    assert (mean[1] == 0).all() and (variance[1] == 0).all()
    close(posterior.coefficients[[0, 2]], before.coefficients[[0, 2]], **CLOSE)


def test_a_finite_explosion_leaves_the_answer_finite() -> None:
    case = Case()
    case.F[0, :3] *= 1e12
    posterior = case.posterior(neighbours=M)
    assert all(value.isfinite().all() for value in case.answer(posterior))


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("chosen_models", [K, M])
def test_gradients_equal_finite_differences(prior: bool, chosen_models: int) -> None:
    case = Case((2,))
    case.mask[1, 0] = False
    names = ("F", "f", "y", "kernel", "cross", "itself")
    numbers = [torch.tensor(v).double() for v in (NOISE, SPREAD, 0.8)]
    inputs = [getattr(case, name) for name in names] + numbers
    for value in inputs:
        value.requires_grad_()

    def answers(*values: Tensor) -> tuple[Tensor, ...]:
        F, f, y, kernel, cross, itself, noise, spread, b = values
        posterior = gaussian_posterior(
            F,
            y,
            noise=noise,
            spread=spread,
            neighbours=chosen_models,
            mask=case.mask,
            prior=case.prior if prior else None,
            # Cholesky reads one half; differences of single entries need both.
            kernel=(kernel + kernel.mT) / 2,
            kernel_scale=b,
        )
        said = f.gather(1, posterior.models[..., None, None].expand(-1, -1, *f.shape[2:]))
        own = case.prior_queries if prior else None
        return (
            posterior.coefficients,
            posterior_mean(posterior, said, prior=own, kernel=cross),
            posterior_variance(posterior, said, kernel=cross, kernel_itself=itself),
        )

    assert torch.autograd.gradcheck(answers, inputs, fast_mode=True)


def test_gradients_are_finite_beside_models_that_are_not() -> None:
    case = Case()
    case.F[0, 2, 1] = torch.nan
    case.F.requires_grad_()
    posterior = case.posterior(neighbours=M)
    sum(value.sum() for value in case.answer(posterior)).backward()
    assert case.F.grad.isfinite().all() and (case.F.grad[0, 2] == 0).all()
    with torch.no_grad():
        close(case.posterior(neighbours=M).coefficients, posterior.coefficients)


def curves(tasks: int, models: int, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Sinusoids of the experiments' size: of tasks, and of models beside them."""
    g = torch.Generator().manual_seed(seed)
    number = tasks + models
    amplitude, frequency, phase = (
        low + (high - low) * torch.rand(number, 1, generator=g).double()
        for low, high in ((0.1, 5.0), (0.5, 2.0), (0.0, 6.3))
    )
    own = amplitude[:tasks] * torch.sin(frequency[:tasks] * x + phase[:tasks])
    late = slice(tasks, None)
    others = amplitude[late, None] * torch.sin(frequency[late, None] * x + phase[late, None])
    return own, others.transpose(0, 1)


def test_single_precision_is_as_good_as_double() -> None:
    g = torch.Generator().manual_seed(5)
    x = 10 * torch.rand(50, 25, generator=g).double() - 5
    own, others = curves(50, 480, x, 6)
    y = own[:, :5] + 0.3 * torch.randn(50, 5, generator=g).double()

    def answers(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        said, labels = others.to(dtype), y.to(dtype)
        posterior = gaussian_posterior(said[:, :, :5], labels, noise=0.042)
        index = posterior.models[..., None].expand(-1, -1, 20)
        f = said[:, :, 5:].gather(1, index)
        return posterior_mean(posterior, f), posterior_variance(posterior, f)

    single, double = answers(torch.float32), answers(torch.float64)
    assert single[0].dtype == single[1].dtype == torch.float32
    close(single[0].double(), double[0], rtol=1e-4, atol=1e-4)
    close(single[1].double(), double[1], rtol=1e-4, atol=1e-4)
    assert ((double[0] - own[:, 5:]).square().mean() < own[:, 5:].square().mean() / 2).item()


def test_the_variance_is_not_negative_and_more_shots_leave_less_of_it() -> None:
    """With one Gaussian a shot never adds to the variance; a mixture's may grow, but not on average."""
    g = torch.Generator().manual_seed(7)
    x = 10 * torch.rand(200, 30, generator=g).double() - 5
    own, others = curves(200, 100, x, 8)
    single, mixture = [], []
    for shots in range(1, 10):
        options = {"noise": 0.05, "neighbours": 100}
        F, f, y = others[:, :, :shots], others[:, :, 10:], own[:, :shots]
        around = gaussian_posterior(F, y, prior=torch.zeros_like(y), **options)
        by_models = f.gather(1, around.models[..., None].expand(-1, -1, 20))
        single.append(
            posterior_variance(around, by_models).gather(1, torch.arange(20).expand(200, -1))
        )
        posterior = gaussian_posterior(F, y, **options)
        by_models = f.gather(1, posterior.models[..., None].expand(-1, -1, 20))
        mixture.append(posterior_variance(posterior, by_models).mean())
    assert all((variance >= 0).all() for variance in single)
    assert all((after <= before + 1e-9).all() for before, after in itertools.pairwise(single))
    assert all(after < before for before, after in itertools.pairwise(mixture))


def test_labels_vary_by_the_noise_as_well() -> None:
    case = Case()
    posterior = case.posterior()
    f = chosen(case.f, posterior)
    found = posterior_variance(posterior, f, of_labels=True) - posterior_variance(posterior, f)
    close(found, torch.full((T, Q), NOISE, dtype=torch.float64), **CLOSE)


def test_the_variance_is_that_of_draws_from_the_mixture() -> None:
    """Draw a model, then a function around it: the squared distances to the mean average to the variance."""
    case = Case(seed=4)
    posterior = case.posterior()
    mean, variance = case.answer(posterior)
    g = torch.Generator().manual_seed(0)
    F, f = chosen(case.F, posterior)[0], chosen(case.f, posterior)[0]
    both = torch.cat([F, f], 1)
    R = SPREAD / K**0.5 * (both - both.mean(0))
    N = 200_000
    centre = both[torch.randint(K, (N,), generator=g)]
    function = centre + torch.randn(N, K, generator=g).double() @ R
    y = case.y[0]
    importance = (-0.5 * (function[:, :S] - y).square().sum(1) / NOISE).softmax(0)
    drawn_mean = importance @ function[:, S:]
    drawn = importance @ (function[:, S:] - mean[0]).square()
    close(drawn_mean, mean[0], rtol=0.02, atol=0.02)
    close(drawn, variance[0], rtol=0.05, atol=0.0)


def test_many_models_take_seconds_and_little_memory() -> None:
    predictions = torch.randn(1, 10_000, 10).expand(1000, -1, -1).contiguous()
    labels = torch.randn(1000, 10)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    posterior = gaussian_posterior(predictions, labels, noise=0.1)
    assert time.perf_counter() - start < 30  # 2 s on an idle core
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # kilobytes
    assert posterior.coefficients.shape == (1000, 80)


CASE = Case()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"predictions": CASE.F[0]}, r"predictions must be \[tasks, models, shots, ...\], got a tensor"),
        ({"predictions": CASE.F.long()}, "predictions must be floating-point numbers.*float"),
        ({"labels": CASE.y[:, 1:]}, r"labels must be .* = \(3, 4\) to match .* \(3, 9, 4\), got \(3, 3\)"),
        ({"labels": CASE.y.long()}, "labels must be floating-point numbers"),
        ({"mask": CASE.mask.float()}, r"mask must be a bool tensor \[tasks, shots\] = \[3, 4\], got"),
        ({"mask": CASE.mask[:2]}, r"mask must be a bool tensor \[tasks, shots\] = \[3, 4\], got"),
        ({"neighbours": 0}, "neighbours must be a whole number of at least 1, got 0"),
        ({"noise": 0.0}, "noise must be a finite number above 0, got 0.0"),
        ({"noise": torch.ones(2)}, r"noise must be a number or broadcast to .* = \(3,\), got \(2,\)"),
        ({"spread": -1.0}, "spread must be a finite number of at least 0, got -1.0"),
        ({"kernel": CASE.cross}, r"kernel must be \[tasks, shots, shots\] = \(3, 4, 4\), got \(3, 5, 4\)"),
        ({"kernel": -CASE.kernel}, r"positive semidefinite, .* for tasks \[0, 1, 2\]. Check"),
        ({"kernel": CASE.kernel, "kernel_scale": -1.0}, "kernel_scale must be a finite number"),
        ({"prior": CASE.prior_queries}, r"prior must be \[tasks, shots, \*outputs\] = \(3, 4\), got"),
        ({"predictions": CASE.F[:, :0]}, "at least one model, got .* pass prior="),
        ({"predictions": CASE.F[:, :, :0], "labels": CASE.y[:, :0]}, "at least one task, shot and output"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(given: dict[str, object], match: str) -> None:
    options = {"predictions": CASE.F, "labels": CASE.y, "noise": NOISE, **given}
    with pytest.raises((ValueError, TypeError), match=match):
        gaussian_posterior(**options)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"posterior": None}, "posterior must be a Posterior, got None. gaussian_posterior"),
        ({"predictions": CASE.f}, r"predictions must be \[tasks, kept, queries, \*outputs\] = \(3, 6, 5\)"),
        ({"prior": CASE.prior_queries}, "prior must be None, because the posterior was made without a prior"),
        ({"kernel": CASE.cross}, "kernel must be None, because the posterior was made without a kernel"),
        ({"posterior": CASE.posterior(prior=CASE.prior)}, "prior must be given, .* with a prior, got None"),
        ({"posterior": CASE.posterior(kernel=CASE.kernel)}, "kernel must be given"),
        (
            {"posterior": CASE.posterior(kernel=CASE.kernel), "kernel": CASE.kernel},
            r"kernel must be \[tasks, queries, shots\] = \(3, 5, 4\), got \(3, 4, 4\)",
        ),
    ],
)  # fmt: skip
def test_wrong_queries_are_refused(given: dict[str, object], match: str) -> None:
    posterior = CASE.posterior()
    options = {"posterior": posterior, "predictions": chosen(CASE.f, posterior), **given}
    with pytest.raises((ValueError, TypeError), match=match):
        posterior_mean(**options)


@pytest.mark.unchecked
def test_a_variance_needs_the_kernel_of_each_query_with_itself() -> None:
    posterior = CASE.posterior(kernel=CASE.kernel)
    with pytest.raises(ValueError, match="kernel_itself must be given"):
        posterior_variance(posterior, chosen(CASE.f, posterior), kernel=CASE.cross)
    with pytest.raises(TypeError, match="of_labels must be True or False"):
        posterior_variance(posterior, chosen(CASE.f, posterior), of_labels=1)
