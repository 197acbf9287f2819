"""The reference against values worked out by hand and against finite differences."""

import math

import pytest
import reference as ref
import torch
from torch import Tensor


def num(value: float) -> Tensor:
    """A float64 scalar."""
    return torch.tensor(value, dtype=torch.float64)


def vec(*values: float) -> Tensor:
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def mat(*rows: list[float]) -> Tensor:
    """A float64 matrix."""
    return torch.tensor(rows, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal to an absolute tolerance, shape and dtype included."""
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance)


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error."""
    return ((predictions - targets) ** 2).mean()


def scalar_net(params: ref.Params, x: Tensor) -> Tensor:
    """f(x) = w x."""
    return params["w"] * x


def identity(x: Tensor) -> Tensor:
    """g(x) = x."""
    return x


def make(generator: torch.Generator, *shape: int) -> Tensor:
    """A small random leaf that wants gradients."""
    values = 0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return values.requires_grad_()


@pytest.mark.parametrize(("first_order", "meta_gradient"), [(False, -0.24), (True, -1.2)])
def test_maml_step_on_a_quadratic(first_order: bool, meta_gradient: float) -> None:
    # Support (2, 3), w = 1: gradient 2*2*(2-3) = -4, curvature 8, so w' = 1 + 0.1*4 = 1.4.
    # Query (1, 2): dL/dw' = 2*(1.4-2) = -1.2, dw'/dw = 1 - 0.1*8 = 0.2.
    w, rate = vec(1.0).requires_grad_(), vec(0.1).requires_grad_()
    adapted = ref.adapt(
        scalar_net,
        {"w": w},
        ["w"],
        mat([2.0]),
        mat([3.0]),
        squared_error,
        lambda name, step: rate,
        1,
        first_order,
    )
    close(adapted["w"].detach(), vec(1.4))
    loss = squared_error(scalar_net(adapted, mat([1.0])), mat([2.0]))
    by_w, by_rate = torch.autograd.grad(loss, [w, rate])
    close(by_w, vec(meta_gradient))
    # The learned rate: dw'/drate = -(-4), in the first-order version too.
    close(by_rate, vec(-1.2 * 4.0))


def test_rates_per_step_and_parameters_without_grad() -> None:
    # Second step from w = 1.4: gradient 4*(2.8-3) = -0.8, times 0.5.
    rates = [0.1, 0.5]
    adapted = ref.adapt(
        scalar_net,
        {"w": vec(1.0), "idle": vec(7.0)},
        ["w", "idle"],
        mat([2.0]),
        mat([3.0]),
        squared_error,
        lambda name, step: rates[step],
        2,
    )
    close(adapted["w"].detach(), vec(1.8))
    close(adapted["idle"].detach(), vec(7.0))


def test_anil_moves_the_head_only() -> None:
    generator = torch.Generator().manual_seed(0)
    params = mlp_params(generator)
    names = ref.head_names(params)
    assert names == ["head.weight", "head.bias"]
    assert ref.head_names(["headless.weight", "body.head.weight"]) == []
    x, y = make(generator, 4, 2).detach(), make(generator, 4, 1).detach()
    adapted = ref.adapt(ref.mlp, params, names, x, y, squared_error, lambda n, s: 0.1, 1)
    for name, value in params.items():
        assert torch.equal(adapted[name], value) == name.startswith("body.")


def test_mlp_and_tnet_by_hand() -> None:
    params = {
        "body.weight": mat([1.0, 2.0], [0.0, -1.0]),
        "body.bias": vec(1.0, 0.0),
        "head.weight": mat([3.0, 1.0]),
        "head.bias": vec(0.5),
    }
    x = mat([1.0, 1.0], [0.0, 2.0])
    close(ref.mlp(params, x, identity), mat([11.5], [13.5]))
    eyes = {"body": torch.eye(2).double(), "head": torch.eye(1).double()}
    close(ref.tnet_mlp(params, eyes, x), ref.mlp(params, x))
    # The bias is transformed with the rest: T_body swaps (4, -1), head -3 + 4 + 0.5, doubled.
    swap = {"body": mat([0.0, 1.0], [1.0, 0.0]), "head": mat([2.0])}
    close(ref.tnet_mlp(params, swap, x[:1], identity), mat([3.0]))


def test_prototypes_and_their_logits() -> None:
    x = mat([0.0, 0.0], [2.0, 4.0], [1.0, 1.0])
    means = ref.prototypes(identity, x, torch.tensor([0, 0, 2]), 3)
    close(means, mat([1.0, 2.0], [0.0, 0.0], [1.0, 1.0]))
    close(ref.prototype_logits(identity, means, mat([1.0, 0.0])), mat([-4.0, -1.0, -1.0]))


def test_input_embedding_pools_samples_not_tensors() -> None:
    support, query = mat([0.0, 3.0]), mat([3.0, 0.0], [6.0, 0.0], [9.0, 9.0])
    kept = ref.valid(query, torch.tensor([True, True, False]))
    close(ref.input_embedding(identity, [support, kept]), vec(3.0, 1.0))
    assert ref.valid(query, None) is query


def test_labelled_embeddings_by_hand() -> None:
    # gelu(1) = Phi(1) and gelu(-1) = Phi(1) - 1.
    phi = 0.5 * (1.0 + math.erf(1.0 / math.sqrt(2.0)))
    weights = {
        "A": mat([1.0, 0.0]),
        "a": vec(1.0),
        "B": mat([2.0]),
        "C": mat([2.0], [0.0]),
        "c": vec(0.0, 5.0),
    }
    # Regression codes: gelu(2 + 1 - 2) and gelu(0 + 1 - 2).
    x, y = mat([2.0, 9.0], [0.0, 9.0]), mat([-1.0], [-1.0])
    e = ref.labelled_regression_embedding(identity, weights, x, y)
    close(e, vec(2.0 * (2.0 * phi - 1.0) / 2.0, 5.0))
    # Classification codes: class 0 from its prototype 0, class 2 from -2; class 1 is absent.
    x, labels = mat([1.0, 9.0], [-1.0, 9.0], [-2.0, 9.0]), torch.tensor([0, 0, 2])
    e = ref.labelled_classification_embedding(identity, weights, x, labels, 3)
    close(e, vec(2.0 * (2.0 * phi - 1.0) / 2.0, 5.0))


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="mean of no vectors"):
        ref.input_embedding(identity, [])


def test_relation_matrix_of_known_vectors() -> None:
    # (3, 4) and (4, 3): cosine 24/25 with omega (1, 1), 1 with omega (1, 0).
    e, omega = mat([3.0, 4.0], [4.0, 3.0], [0.0, 0.0]), mat([1.0, 1.0], [1.0, 0.0])
    expected = mat([1.0, 0.98, 0.0], [0.98, 1.0, 0.0], [0.0, 0.0, 0.0])
    close(ref.relation_matrix(e, omega), expected, 1e-12)


def test_cosine_of_tiny_vectors_shrinks() -> None:
    # u.u = eps^2, so the product of the two factors is 1 / (2 eps^2).
    close(ref.cosine(vec(1e-6), vec(1e-6)), num(0.5), 1e-12)


M = mat([1.0, 0.6, 0.2], [0.6, 1.0, -0.5], [0.2, -0.5, 1.0])


def test_weights_of_a_known_matrix() -> None:
    tiny = 1e-6
    expected = mat([0.0, (0.6 + tiny) / (0.8 + 2 * tiny), (0.2 + tiny) / (0.8 + 2 * tiny)])
    close(ref.relation_weights(M)[:1], expected, 1e-14)
    close(ref.relation_weights(M)[1, 2], num(tiny / (0.6 + 2 * tiny)), 1e-14)
    p = 1.0 / (1.0 + math.exp(-0.4 / 0.1))
    close(ref.relation_weights(M, "softmax", 0.1)[:1], mat([0.0, p, 1.0 - p]), 1e-14)
    expected = mat([0.0, 0.75, 0.25], [6.0, 0.0, -5.0], [-2.0 / 3.0, 5.0 / 3.0, 0.0])
    close(ref.relation_weights(M, "quotient"), expected, 1e-13)
    best = mat([0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    for normalize in ("sum", "softmax", "quotient"):
        close(ref.relation_weights(M, normalize, 0.1, top_k=1), best)
        close(
            ref.relation_weights(M, normalize, 0.1, top_k=2),
            ref.relation_weights(M, normalize, 0.1),
        )
    assert ref.relation_weights(M, "softmax", 1e-4).isfinite().all()
    with pytest.raises(ValueError, match="unknown normalization 'max'"):
        ref.relation_weights(M, "max")


def test_mixture_of_values_and_of_one_hot_classifiers() -> None:
    W = mat([0.0, 0.75, 0.25], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    own, first, second = mat([9.0, 9.0]), mat([800.0, 0.0]), mat([0.0, 800.0])
    predictions = [[own], [first], [second]]
    close(ref.mixture(predictions, W, 0, "values"), mat([600.0, 200.0]))
    close(ref.mixture(predictions, W, 0, "logits"), mat([math.log(0.75), math.log(0.25)]))
    # Model 2 numbers the classes the other way round, so both mean class 0.
    alignment = [[None, torch.eye(2).double(), mat([0.0, 1.0], [1.0, 0.0])]]
    aligned = ref.mixture(predictions, W, 0, "logits", alignment).exp()
    close(aligned, mat([1.0, 0.0]))
    close(ref.mixture(predictions, W, 0, "values", alignment), mat([800.0, 0.0]))
    # Three classes of task 0 from two of model 1: rows are the classes of task 0.
    uneven = [[None, mat([0.5, 0.0], [0.5, 0.0], [0.0, 1.0])]]
    one = mat([0.0, 1.0], [1.0, 0.0])
    close(ref.mixture([[own], [first]], one, 0, "values", uneven), mat([400.0, 400.0, 0.0]))
    with pytest.raises(ValueError, match="at least two tasks"):
        ref.mixture([[own]], mat([0.0]), 0, "values")
    with pytest.raises(ValueError, match="unknown kind 'odds'"):
        ref.mixture(predictions, W, 0, "odds")


def test_relation_loss_with_masks_by_hand() -> None:
    # Two tasks: the other model has all the weight. Task 0: (2-0)^2, its second query dropped;
    # task 1: ((1-0)^2 + (3-0)^2) / 2.
    zeros = torch.zeros(2, 1, dtype=torch.float64)
    predictions = [[zeros, mat([1.0], [3.0])], [mat([2.0], [math.nan]), zeros]]
    masks = [torch.tensor([True, False]), None]
    targets = [mat([0.0], [math.nan]), zeros]
    pair = mat([1.0, 0.3], [0.3, 1.0])
    loss = ref.relation_loss(predictions, targets, pair, squared_error, masks=masks)
    close(loss, num((4.0 + 5.0) / 2.0))


def test_alignment_of_permuted_prototypes() -> None:
    p_i = mat([1.0, 0.1, 0.0], [0.0, 2.0, 0.1], [0.1, 0.0, 3.0])
    order = [2, 0, 1]
    p_j = 5.0 * p_i[order]
    permutation = torch.zeros(3, 3, dtype=torch.float64)
    for d, c in enumerate(order):
        permutation[c, d] = 1.0
    close(ref.hungarian(p_i, p_j), permutation)
    close(ref.sinkhorn(p_i, p_j, 0.05, 10), permutation, 1e-6)
    rough = ref.sinkhorn(p_i, p_j[:2], 1.0, 3)
    close(rough.sum(0), vec(1.0, 1.0))
    # One iteration on cosines [[1, 0.6], [0, 0.8]]: rows first, so the columns end exact.
    once = ref.sinkhorn(mat([2.0, 0.0], [0.0, 1.0]), mat([1.0, 0.0], [3.0, 4.0]), 1.0, 1)
    left, right = 1.0 / (1.0 + math.exp(-0.4)), 1.0 / (1.0 + math.exp(0.8))
    column = [left / (left + right), right / (left + right)]
    other = [(1.0 - left) / (2.0 - left - right), (1.0 - right) / (2.0 - left - right)]
    close(once, mat([column[0], other[0]], [column[1], other[1]]))
    # No iteration: the bare kernel exp(cosine / temperature).
    bare = ref.sinkhorn(mat([2.0, 0.0]), mat([3.0, 4.0]), 0.5, 0)
    close(bare, mat([math.exp(1.2)]), 1e-9)
    with pytest.raises(ValueError, match="same number of classes"):
        ref.hungarian(p_i, p_j[:2])


def test_finite_difference_restores_the_tensor() -> None:
    t = mat([1.0, -2.0], [0.5, 3.0]).requires_grad_()
    before = t.detach().clone()
    loss = (t**3).sum()
    numeric = ref.finite_difference(lambda: (t**3).sum(), t)
    assert torch.equal(t.detach(), before)
    (exact,) = torch.autograd.grad(loss, t)
    close(numeric, exact, 1e-8)
    scalar = num(2.0)
    close(ref.finite_difference(lambda: scalar**2, scalar), num(4.0), 1e-8)


def test_a_slope_is_the_gradient_along_the_direction() -> None:
    t = mat([1.0, -2.0], [0.5, 3.0]).requires_grad_()
    before, direction = t.detach().clone(), mat([1.0, 2.0], [-3.0, 0.5])
    slope = ref.slope(lambda: (t**3).sum(), t, direction)
    assert torch.equal(t.detach(), before)
    close(num(slope), (direction * 3 * before**2).sum(), 1e-8)


def mlp_params(generator: torch.Generator) -> ref.Params:
    """A 2-3-1 network."""
    return {
        "body.weight": make(generator, 3, 2),
        "body.bias": make(generator, 3),
        "head.weight": make(generator, 1, 3),
        "head.bias": make(generator, 1),
    }


@pytest.mark.full
@pytest.mark.parametrize("transformed", [False, True])
def test_meta_gradient_is_the_finite_difference(transformed: bool) -> None:
    g = torch.Generator().manual_seed(1)
    params = mlp_params(g)
    extra = {"omega": make(g, 2, 3), "rate": make(g, 3, 2)}
    shapes = {"A": (4, 2), "a": (4,), "B": (4, 1), "C": (3, 4), "c": (3,)}
    weights = {name: make(g, *shape) for name, shape in shapes.items()}
    transforms = {"body": make(g, 3, 3), "head": make(g, 1, 1)} if transformed else {}
    draw = [
        [make(g, n, w).detach() for n, w in [(4, 2), (4, 1), (n_q, 2), (n_q, 1)]]
        for n_q in (3, 2, 3)
    ]
    tasks = [((xs, ys), (xq, yq)) for xs, ys, xq, yq in draw]

    def net(theta: ref.Params, x: Tensor) -> Tensor:
        return ref.tnet_mlp(theta, transforms, x) if transformed else ref.mlp(theta, x)

    def rate(name: str, step: int) -> float | Tensor:
        return extra["rate"] if name == "body.weight" else 0.1 + 0.05 * step

    def loss() -> Tensor:
        return ref.meta_loss(
            tasks,
            lambda s: ref.adapt(net, params, params, *s, squared_error, rate, 2),
            net,
            lambda task: ref.labelled_regression_embedding(identity, weights, *task[0]),
            extra["omega"],
            0.3,
            squared_error,
            normalize="softmax",
            temperature=0.5,
        )[0]

    leaves = {**params, **extra, **weights, **transforms}
    exact = torch.autograd.grad(loss(), list(leaves.values()))
    for gradient, leaf in zip(exact, leaves.values(), strict=True):
        assert gradient.abs().max() > 1e-6
        close(ref.finite_difference(loss, leaf), gradient, 1e-6)


def test_meta_loss_parts_by_hand() -> None:
    # Two constant models 1 and 3 on targets 0: own losses 1 and 9, crossed 9 and 1.
    x, zero = mat([1.0]), mat([0.0])
    tasks = [((mat([v]), zero), (x, zero)) for v in (1.0, 3.0)]
    loss, task_loss, relation, similarity, W = ref.meta_loss(
        tasks,
        lambda support: support[0],
        lambda model, inputs: model * inputs,
        lambda task: ref.input_embedding(identity, [task[0][0]]),
        mat([1.0]),
        0.5,
        squared_error,
    )
    assert [float(v) for v in (loss, task_loss, relation)] == pytest.approx([7.5, 5.0, 5.0])
    close(similarity, torch.ones(2, 2).double(), 1e-11)
    close(W, mat([0.0, 1.0], [1.0, 0.0]))
