"""Weights, mixtures and L_TR."""

import contracts
import pytest
import reference
import torch
from contracts import close, later
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, mse_loss

import trlearner as tr
from trlearner.relations.consistency import mix

TIGHT = 1e-9
NORMALIZE = ("sum", "softmax", "quotient")


def relations(seed: int, tasks: int, dim: int = 3) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(tasks, dim, generator=g, dtype=torch.float64)
    return tr.relation_matrix(embeddings, torch.ones(1, dim).double())


def predictions(seed: int, tasks: int, queries: int = 3, outputs: int = 4) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed + 1)
    return torch.randn(tasks, tasks, queries, outputs, generator=g, dtype=torch.float64)


@given(
    seed=st.integers(0, 1000),
    tasks=st.integers(2, 6),
    normalize=st.sampled_from(NORMALIZE),
    top_k=st.sampled_from([None, 1, 2, 9]),
)
@settings(deadline=None, max_examples=60)
def test_weights_equal_reference(seed: int, tasks: int, normalize: str, top_k: int | None) -> None:
    m = relations(seed, tasks)
    w = tr.relation_weights(m, normalize, temperature=0.3, top_k=top_k)
    close(w, reference.relation_weights(m, normalize, 0.3, top_k), TIGHT)
    close(w.sum(1), torch.ones(tasks).double(), 1e-6)
    assert (w.diagonal() == 0).all()
    if top_k is not None:
        assert ((w != 0).sum(1) <= top_k).all()


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("top_k", [None, *later(2)])
@pytest.mark.parametrize("kind", ["values", "logits"])
def test_loss_and_gradients_equal_reference_and_differences(
    normalize: str, top_k: int | None, kind: str
) -> None:
    if kind == "logits" and normalize == "quotient":
        pytest.skip("negative weights are no mixture of probabilities; see the error test")
    m, f = relations(0, 5).requires_grad_(), predictions(0, 5).requires_grad_()
    y = torch.randint(4, (5, 3)) if kind == "logits" else torch.randn(5, 3, 4).double()
    loss_fn = cross_entropy if kind == "logits" else mse_loss
    options = {"normalize": normalize, "temperature": 0.3, "top_k": top_k}

    def value() -> torch.Tensor:
        return tr.relation_consistency(f, y, m, loss_fn, mixture=kind, **options)

    def truth() -> torch.Tensor:
        return reference.relation_loss(f, y, m, loss_fn, kind, normalize, 0.3, top_k)

    close(value(), truth(), TIGHT)
    found, wanted = (torch.autograd.grad(v(), (m, f)) for v in (value, truth))
    for gradient, expected, tensor in zip(found, wanted, (m, f), strict=True):
        close(gradient, expected, TIGHT)
        close(contracts.along(gradient), contracts.slopes(value, tensor), 1e-6)
    # The own model's predictions and the own relation take no part.
    assert (found[1][range(5), range(5)] == 0).all()
    assert (found[0].diagonal() == 0).all()
    assert found[0].abs().max() > 0


def test_weight_of_task_and_model_are_not_swapped() -> None:
    """Only model 2 knows task 0; with m_02 large and m_20's row pointing elsewhere, it must be asked."""
    m = torch.tensor([[1.0, 0.0, 0.9], [0.0, 1.0, 0.0], [0.1, 0.8, 1.0]])
    f = torch.zeros(3, 3, 1, 1)
    f[2, 0] = 5.0
    w = tr.relation_weights(m)
    mixed = mix(f, w, "values")
    assert mixed[0].item() == pytest.approx(5 * 0.9 / 0.9, rel=1e-4)
    assert mixed[2].item() == 0


@given(seed=st.integers(0, 1000), tasks=st.integers(2, 6), normalize=st.sampled_from(NORMALIZE[:2]))
@settings(deadline=None, max_examples=30)
def test_permuting_tasks_leaves_the_loss(seed: int, tasks: int, normalize: str) -> None:
    m, f = relations(seed, tasks), predictions(seed, tasks)
    y = torch.randn(tasks, 3, 4, generator=torch.Generator().manual_seed(seed)).double()
    order = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
    before = tr.relation_consistency(f, y, m, mse_loss, normalize=normalize)
    after = tr.relation_consistency(
        f[order][:, order], y[order], m[order][:, order], mse_loss, normalize=normalize
    )
    close(after, before, 1e-12)


def test_masks_equal_dropping_the_queries() -> None:
    m, f, y = relations(0, 3), predictions(0, 3), torch.randn(3, 3, 4).double()
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    found = tr.relation_consistency(f, y, m, mse_loss, mask=mask)
    close(found, reference.relation_loss(f, y, m, mse_loss, masks=list(mask)), TIGHT)


@pytest.mark.parametrize("kind", ["values", "logits"])
def test_alignment_equals_reference(kind: str) -> None:
    m, f = relations(0, 3), predictions(0, 3)
    y = torch.randint(4, (3, 3)) if kind == "logits" else torch.randn(3, 3, 4).double()
    loss_fn = cross_entropy if kind == "logits" else mse_loss
    a = torch.rand(3, 3, 4, 4).double()
    a = a / a.sum(-2, keepdim=True)
    found = tr.relation_consistency(f, y, m, loss_fn, mixture=kind, alignment=a)
    by_task = [[a[j, i] for j in range(3)] for i in range(3)]
    close(found, reference.relation_loss(f, y, m, loss_fn, kind, alignment=by_task), TIGHT)


def test_row_without_positive_relations_is_uniform_with_finite_gradients() -> None:
    m = torch.full((4, 4), -0.5).fill_diagonal_(1).requires_grad_()
    w = tr.relation_weights(m)
    close(w, (1 - torch.eye(4)) / 3, 1e-6)
    tr.relation_consistency(torch.randn(4, 4, 2, 1), torch.randn(4, 2, 1), m, mse_loss).backward()
    assert torch.isfinite(m.grad).all()


def test_plain_quotient_stays_finite_where_it_divides_by_nothing() -> None:
    m = torch.tensor([[1.0, 0.5, -0.5], [0.5, 1.0, 0.0], [-0.5, 0.0, 1.0]], requires_grad=True)
    w = tr.relation_weights(m, "quotient")
    w.sum().backward()
    assert torch.isfinite(w).all()
    assert torch.isfinite(m.grad).all()


def test_zero_weights_in_a_mixture_of_classifiers_have_finite_gradients() -> None:
    f = torch.randn(4, 4, 2, 3, requires_grad=True)
    m = torch.randn(4, 4, requires_grad=True)
    loss = tr.relation_consistency(f, torch.randint(3, (4, 2)), m, cross_entropy, top_k=1)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(f.grad).all()
    assert torch.isfinite(m.grad).all()


def test_two_tasks_have_weight_one_and_no_gradient_for_the_relation() -> None:
    m = torch.tensor([[1.0, 0.3], [0.3, 1.0]], requires_grad=True)
    for normalize in NORMALIZE:
        w = tr.relation_weights(m, normalize)
        close(w.detach(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 1e-6)
        (gradient,) = torch.autograd.grad((w * torch.randn(2, 2)).sum(), m)
        close(gradient, torch.zeros(2, 2), 1e-6)


def test_one_task_has_no_relation_loss() -> None:
    f = torch.randn(1, 1, 3, 2, requires_grad=True)
    loss = tr.relation_consistency(f, torch.randn(1, 3, 2), torch.ones(1, 1), mse_loss)
    assert loss.item() == 0
    loss.backward()
    assert (f.grad == 0).all()


def test_equal_tasks_have_uniform_weights() -> None:
    m = tr.relation_matrix(torch.ones(5, 3), torch.rand(2, 3))
    for normalize in NORMALIZE:
        close(tr.relation_weights(m, normalize), (1 - torch.eye(5)) / 4, 1e-6)


M, F_, Y = torch.eye(4), torch.zeros(4, 4, 15, 5), torch.zeros(4, 15, 5)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        (
            (F_, Y, torch.zeros(4, 8), mse_loss),
            {},
            r"relations must be \[tasks, models\] = \(4, 4\) to match predictions \(4, 4, 15, 5\), "
            r"got \(4, 8\).\nIf they were computed on a larger pool, select this batch's rows and columns",
        ),
        ((F_[:3], Y, M, mse_loss), {}, "predictions must be .* as many models as tasks"),
        ((F_, Y[:, :9], M, mse_loss), {}, r"targets must be .* = \(4, 15\)"),
        ((F_, Y, M, mse_loss), {"mixture": "mean"}, "mixture must be 'auto', 'values' or 'logits'"),
        ((F_, Y, M, mse_loss), {"normalize": "max"}, "normalize must be 'sum', 'softmax', 'quot"),
        (
            (F_, Y[..., 0].long(), M, cross_entropy),
            {"normalize": "quotient"},
            "mixture='logits' mixes probabilities, but normalize='quotient' can give negative",
        ),
    ],
)
def test_errors_name_argument_value_and_remedy(arguments, options, match: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=match):
        tr.relation_consistency(*arguments, **options)


@pytest.mark.parametrize("mixture", ["values", "logits"])
@pytest.mark.parametrize("answers", [torch.float64, torch.float32, torch.bfloat16])
def test_an_alignment_of_another_precision_is_taken(mixture, answers) -> None:
    """Prototypes of whole numbers, or a regularizer that was not cast along with the model."""
    f, w = predictions(3, 3).to(answers), tr.relation_weights(relations(3, 3))
    alignment = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    found = mix(f, w, mixture, alignment)
    # log_softmax rounds to the precision of the answers.
    rounding = 2**-6 if answers == torch.bfloat16 else 1e-5
    close(found.double(), mix(f.double(), w, mixture, alignment.double()), rounding)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (
            torch.ones(2, 3, dtype=torch.bool),
            r"mask must be .* = \[2, 4\], got torch.bool \[2, 3\]",
        ),
        (torch.ones(2, dtype=torch.bool), r"mask must be .* = \[2, 4\], got torch.bool \[2\]"),
        (torch.ones(2, 4), r"mask must be .* = \[2, 4\], got torch.float32 \[2, 4\]"),
        (torch.tensor([[True] * 4, [False] * 4]), r"at least one real query, .* for tasks \[1\]"),
    ],
)
def test_a_mask_must_fit_and_leave_every_task_a_query(mask, match):
    p, y, m = torch.zeros(2, 2, 4, 1), torch.zeros(2, 4, 1), torch.ones(2, 2)
    with pytest.raises(ValueError, match=match):
        tr.relation_consistency(p, y, m, mse_loss, mask=mask)


@pytest.mark.unchecked
@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, float("nan"), "0.1", None])
def test_a_temperature_must_be_above_zero(temperature):
    p, y, m = torch.zeros(3, 3, 4, 1), torch.zeros(3, 4, 1), torch.eye(3)
    match = r"temperature must be a finite number above 0, got"
    with pytest.raises(ValueError, match=match):
        tr.relation_weights(m, "softmax", temperature=temperature)
    with pytest.raises(ValueError, match=match):
        tr.relation_consistency(p, y, m, mse_loss, temperature=temperature)
    with pytest.raises(ValueError, match=match):
        tr.TRLearner(tr.LabelledEncoder(None, dim=2), temperature=temperature)


@pytest.mark.unchecked
@pytest.mark.parametrize("top_k", [0, -1, 1.0, True, "2"])
def test_top_k_must_be_a_whole_number(top_k):
    p, y, m = torch.zeros(3, 3, 4, 1), torch.zeros(3, 4, 1), torch.eye(3)
    match = r"top_k must be a whole number of at least 1, or None, got"
    with pytest.raises(ValueError, match=match):
        tr.relation_weights(m, top_k=top_k)
    with pytest.raises(ValueError, match=match):
        tr.relation_consistency(p, y, m, mse_loss, top_k=top_k)
    with pytest.raises(ValueError, match=match):
        tr.TRLearner(tr.LabelledEncoder(None, dim=2), top_k=top_k)
    with pytest.raises(ValueError, match=r"top_k must be a whole number of at least 1, got"):
        tr.TaskMemory(tr.MAML(torch.nn.Linear(1, 1), lr=0.1, steps=1), top_k=top_k)


def test_a_top_k_above_the_number_of_neighbours_keeps_all():
    m = torch.tensor([[1.0, 0.2, 0.6], [0.2, 1.0, 0.1], [0.6, 0.1, 1.0]])
    for normalize in ("sum", "softmax", "quotient"):
        wanted = tr.relation_weights(m, normalize)
        assert torch.equal(tr.relation_weights(m, normalize, top_k=2), wanted)
        assert torch.equal(tr.relation_weights(m, normalize, top_k=99), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalize", ["sum", "softmax", "quotient"])
def test_weights_of_relations_in_half_precision_are_those_of_single(dtype, normalize: str):
    for row in ([0.3, -0.3, 0.0, 0.1], [-0.5, -0.25, -1.0, -0.5], [0.5, -0.5, 0.0, 0.0]):
        m = torch.tensor(row).repeat(4, 1).to(dtype)
        found = tr.relation_weights(m, normalize, temperature=1e-6)
        assert torch.equal(found, tr.relation_weights(m.float(), normalize, temperature=1e-6))
        assert found.isfinite().all()


def test_the_lowest_temperatures_leave_the_most_related_and_a_gradient():
    m = torch.tensor([[1.0, 2.0, 6.0], [5.0, 1.0, 5.0], [-9.0, -5.0, 1.0]])  # 6e38 is infinite
    temperature = torch.tensor(1e-38, requires_grad=True)
    for value in (temperature, 1e-38):
        found = tr.relation_weights(m, "softmax", temperature=value)
        assert found.tolist() == [[0.0, 0.0, 1.0], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    one, temperature = torch.ones(1, 1, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    total = tr.relation_weights(one, "softmax", temperature=temperature).sum()
    found = torch.autograd.grad(total, [one, temperature])
    assert [float(g) for g in found] == [0.0, 0.0]


@pytest.mark.unchecked
@pytest.mark.parametrize("shape", [(0, 0, 3, 1), (2, 2, 0, 1)])
def test_nothing_to_predict_is_refused(shape):
    p = torch.zeros(shape)
    with pytest.raises(ValueError, match="at least one task and one query, got"):
        tr.relation_consistency(p, p[:1].sum(0), torch.ones(shape[:2]), mse_loss)


@pytest.mark.unchecked
@pytest.mark.parametrize("mixture", ["values", "logits"])
@pytest.mark.parametrize("shape", [(2, 2, 5, 3), (2, 2, 3), (3, 2, 3, 3), (2, 2, 1, 3)])
def test_an_alignment_of_other_classes_is_refused(mixture: str, shape):
    # An alignment of five classes for three would be mixed to five, and cross-entropy take it.
    p, y = torch.zeros(2, 2, 4, 3), torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"alignment must be .* = \(2, 2, 4, 3\), got .*sinkhorn"):
        tr.relation_consistency(
            p, y, torch.ones(2, 2), cross_entropy, mixture=mixture, alignment=torch.ones(shape)
        )
