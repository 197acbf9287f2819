"""Slow, loop-only, float64 truth, written from the formulas and sharing no code with the library.

Inputs are float64 unless said otherwise, samples are the leading axis everywhere, and nothing is
detached unless a formula says so. Masked samples are dropped before anything is computed.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

EPS = 1e-6

Params = dict[str, Tensor]
Function = Callable[[Tensor], Tensor]
Net = Callable[[Params, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Rate = Callable[[str, int], float | Tensor]
Pair = tuple[Tensor, Tensor]
Task = tuple[Pair, Pair]
Alignment = Sequence[Sequence[Tensor | None]]


def mlp(params: Params, x: Tensor, activation: Function = torch.tanh) -> Tensor:
    """head.weight activation(body.weight x + body.bias) + head.bias, sample by sample."""
    rows = []
    for sample in x:
        hidden = activation(params["body.weight"] @ sample + params["body.bias"])
        rows.append(params["head.weight"] @ hidden + params["head.bias"])
    return torch.stack(rows)


def tnet_mlp(
    params: Params, transforms: Params, x: Tensor, activation: Function = torch.tanh
) -> Tensor:
    """T_head (W_head activation(T_body (W_body x + b_body)) + b_head), sample by sample."""
    rows = []
    for sample in x:
        body = params["body.weight"] @ sample + params["body.bias"]
        hidden = activation(transforms["body"] @ body)
        head = params["head.weight"] @ hidden + params["head.bias"]
        rows.append(transforms["head"] @ head)
    return torch.stack(rows)


def head_names(params: Iterable[str]) -> list[str]:
    """ANIL: only the parameters whose name starts with "head." adapt."""
    return [name for name in params if name.startswith("head.")]


def valid(x: Tensor, mask: Tensor | None) -> Tensor:
    """x_s for the samples s with mask_s true; all of them without a mask."""
    return x if mask is None else x[mask.bool()]


def gelu(x: Tensor) -> Tensor:
    """0.5 x (1 + erf(x / sqrt 2))."""
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def features(g: Function, x: Tensor) -> list[Tensor]:
    """h_s = g(x_s), flattened."""
    # Batches of one, so that no sample can leak into the features of another.
    return [g(x[s : s + 1]).reshape(-1).double() for s in range(len(x))]


def mean(vectors: Sequence[Tensor]) -> Tensor:
    """1/n sum_s v_s."""
    if not vectors:
        raise ValueError("the mean of no vectors is undefined")
    return sum(vectors) / len(vectors)


def input_embedding(g: Function, inputs: Sequence[Tensor]) -> Tensor:
    """e = mean of the flattened g(x) over every sample x of all the tensors together."""
    return mean([h for x in inputs for h in features(g, x)])


def labelled_regression_embedding(g: Function, weights: Params, x: Tensor, y: Tensor) -> Tensor:
    """e = C mean_s(gelu(A h_s + a + B y_s)) + c."""
    codes = []
    for s, h in enumerate(features(g, x)):
        codes.append(gelu(weights["A"] @ h + weights["a"] + weights["B"] @ y[s].reshape(-1)))
    return weights["C"] @ mean(codes) + weights["c"]


def labelled_classification_embedding(
    g: Function, weights: Params, x: Tensor, y: Tensor, ways: int
) -> Tensor:
    """e = C mean_c(gelu(A p_c + a)) + c, c over the classes present in the support."""
    means = prototypes(g, x, y, ways)
    codes = []
    for c in range(ways):
        if any(int(label) == c for label in y):
            codes.append(gelu(weights["A"] @ means[c] + weights["a"]))
    return weights["C"] @ mean(codes) + weights["c"]


def prototypes(g: Function, x: Tensor, y: Tensor, ways: int) -> Tensor:
    """p_c = mean of the g(x_s) with y_s = c, zeros for an absent class."""
    hs = features(g, x)
    rows = []
    for c in range(ways):
        members = [h for s, h in enumerate(hs) if int(y[s]) == c]
        rows.append(mean(members) if members else torch.zeros_like(hs[0]))
    return torch.stack(rows)


def prototype_logits(g: Function, means: Tensor, x: Tensor) -> Tensor:
    """logit_qc = -|g(x_q) - p_c|^2."""
    rows = []
    for h in features(g, x):
        rows.append(torch.stack([-((h - p) ** 2).sum() for p in means]))
    return torch.stack(rows)


def bayes_weights(h: Tensor, y: Tensor, W0: Tensor, C: Tensor, noise: Tensor) -> Tensor:
    """W = P^-1 (Q W0 + sum_s p_s y_s^T / noise), P = Q + sum_s p_s p_s^T / noise.

    Q = (C C^T)^-1 is the prior's precision, p_s = (h_s, 1).
    """
    Q = torch.linalg.inv(C @ C.T)
    precision, weighted = Q, Q @ W0
    for h_s, y_s in zip(h, y, strict=True):
        p_s = torch.cat([h_s, torch.ones(1, dtype=torch.float64)])
        precision = precision + torch.outer(p_s, p_s) / noise
        weighted = weighted + torch.outer(p_s, y_s) / noise
    return torch.linalg.inv(precision) @ weighted


def affine(h: Tensor, W: Tensor) -> Tensor:
    """W^T (h_s, 1), sample by sample."""
    return torch.stack([W[:-1].T @ h_s + W[-1] for h_s in h])


def cosine(u: Tensor, v: Tensor) -> Tensor:
    """sum_d u_d v_d * rsqrt(u.u + eps^2) * rsqrt(v.v + eps^2)."""
    uv, uu, vv = (u * v).sum(), (u * u).sum(), (v * v).sum()
    return uv * torch.rsqrt(uu + EPS**2) * torch.rsqrt(vv + EPS**2)


def relation_matrix(embeddings: Tensor | Sequence[Tensor], omega: Tensor) -> Tensor:
    """m_ij = 1/K sum_k cos(omega_k * e_i, omega_k * e_j)."""
    rows = []
    for e_i in embeddings:
        row = []
        for e_j in embeddings:
            row.append(mean([cosine(omega_k * e_i, omega_k * e_j) for omega_k in omega]))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def kept_models(m_i: Tensor, i: int, top_k: int | None) -> list[int]:
    """The j != i, or of these the top_k with the largest m_ij (the smaller j wins a tie)."""
    others = [j for j in range(len(m_i)) if j != i]
    return sorted(others, key=lambda j: (-float(m_i[j].detach()), j))[:top_k]


def relation_weights(
    M: Tensor, normalize: str = "sum", temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """w_ij = s_ij / sum_{kept j} s_ij, s = relu(m) + 1e-6, exp(m / temperature) or m; w_ii = 0."""
    rows = []
    for i in range(len(M)):
        kept = kept_models(M[i], i, top_k)
        # The shift cancels in the quotient; without it a low temperature overflows.
        shift = max((float(M[i, j].detach()) for j in kept), default=0.0)
        scores = {}
        for j in kept:
            if normalize == "sum":
                scores[j] = torch.relu(M[i, j]) + 1e-6
            elif normalize == "softmax":
                scores[j] = torch.exp((M[i, j] - shift) / temperature)
            elif normalize == "quotient":
                scores[j] = M[i, j]
            else:
                raise ValueError(f"unknown normalization {normalize!r}")
        total = sum(scores.values())
        zero = torch.zeros((), dtype=M.dtype)
        rows.append(
            torch.stack([scores[j] / total if j in scores else zero for j in range(len(M))])
        )
    return torch.stack(rows)


def unit_rows(p: Tensor) -> list[Tensor]:
    """v * rsqrt(v.v + eps^2) for each row v."""
    return [v * torch.rsqrt((v * v).sum() + EPS**2) for v in p]


def sinkhorn(p_i: Tensor, p_j: Tensor, temperature: float, iterations: int) -> Tensor:
    """S_cd = <p_ic, p_jd> / temperature; iterate S -= row lse, S -= column lse; A = exp(S)."""
    us, vs = unit_rows(p_i), unit_rows(p_j)
    S = [[(u * v).sum() / temperature for v in vs] for u in us]
    for _ in range(iterations):
        for c in range(len(us)):
            row = torch.logsumexp(torch.stack(S[c]), 0)
            S[c] = [entry - row for entry in S[c]]
        for d in range(len(vs)):
            column = torch.logsumexp(torch.stack([S[c][d] for c in range(len(us))]), 0)
            for c in range(len(us)):
                S[c][d] = S[c][d] - column
    return torch.stack([torch.exp(torch.stack(row)) for row in S])


def hungarian(p_i: Tensor, p_j: Tensor) -> Tensor:
    """A_{c,pi(c)} = 1 for the permutation pi with the largest sum_c <p_ic, p_j,pi(c)>."""
    us, vs = unit_rows(p_i.detach()), unit_rows(p_j.detach())
    if len(us) != len(vs):
        raise ValueError("a permutation needs the same number of classes on both sides")

    def similarity(order: tuple[int, ...]) -> float:
        return sum(float((us[c] * vs[d]).sum()) for c, d in enumerate(order))

    best = max(itertools.permutations(range(len(us))), key=similarity)
    A = torch.zeros(len(us), len(us), dtype=torch.float64)
    for c, d in enumerate(best):
        A[c, d] = 1.0
    return A


def align(A: Tensor | None, f: Tensor) -> Tensor:
    """aligned[..., c] = sum_d A[c, d] f[..., d]; f itself without a matrix."""
    if A is None:
        return f
    columns = []
    for c in range(A.shape[0]):
        column = torch.zeros_like(f[..., 0])
        for d in range(A.shape[1]):
            column = column + A[c, d] * f[..., d]
        columns.append(column)
    return torch.stack(columns, dim=-1)


def mixture(
    predictions: Sequence[Sequence[Tensor]],
    weights: Tensor,
    i: int,
    kind: str,
    alignment: Alignment | None = None,
) -> Tensor:
    """P_i = sum_{j != i} w_ij f_j(X_i), or log(sum_{j != i} w_ij softmax(f_j(X_i)))."""
    if kind not in ("values", "logits"):
        raise ValueError(f"unknown kind {kind!r}")
    terms = []
    for j in range(len(predictions)):
        if j != i:
            f = predictions[j][i]
            f = torch.softmax(f, dim=-1) if kind == "logits" else f
            terms.append(weights[i, j] * align(alignment[i][j] if alignment else None, f))
    if not terms:
        raise ValueError("a mixture needs at least two tasks")
    return torch.log(sum(terms)) if kind == "logits" else sum(terms)


def recalled(
    predict: Callable[[Any, Tensor], Tensor],
    own: Any,
    others: Sequence[Any],
    support: Pair,
    x: Tensor,
    loss_fn: Loss,
    share: float,
    temperature: float,
    top_k: int,
    kind: str,
) -> Tensor:
    """(1 - share) f(x) + share sum_j w_j f_j(x), w = softmax(-loss(f_j, support) / temperature).

    Over the top_k others with the least loss; "logits" mixes softmax(f) and takes the logarithm.
    """

    def said(model: Any) -> Tensor:
        f = predict(model, x)
        return torch.softmax(f, dim=-1) if kind == "logits" else f

    losses = [(loss_fn(predict(f, support[0]), support[1]).item(), j) for j, f in enumerate(others)]
    best = sorted(losses)[:top_k]
    parts = [math.exp(-(loss - best[0][0]) / temperature) for loss, _ in best]
    answer = (1 - share) * said(own)
    for part, (_, j) in zip(parts, best, strict=True):
        answer = answer + share * part / sum(parts) * said(others[j])
    return torch.log(answer) if kind == "logits" else answer


def relation_loss(
    predictions: Sequence[Sequence[Tensor]],
    targets: Sequence[Tensor],
    M: Tensor,
    loss_fn: Loss,
    kind: str = "values",
    normalize: str = "sum",
    temperature: float = 1.0,
    top_k: int | None = None,
    masks: Sequence[Tensor | None] | None = None,
    alignment: Alignment | None = None,
) -> Tensor:
    """L_TR = 1/T sum_i loss(P_i, Y_i), each loss over the valid samples of task i only."""
    T = len(targets)
    masks = masks if masks is not None else [None] * T
    W = relation_weights(M, normalize, temperature, top_k)
    kept = [[valid(predictions[j][i], masks[i]) for i in range(T)] for j in range(T)]
    losses = []
    for i in range(T):
        P = mixture(kept, W, i, kind, alignment)
        losses.append(loss_fn(P, valid(targets[i], masks[i])))
    return mean(losses)


def meta_loss(
    tasks: Sequence[Task],
    adapt_task: Callable[[Pair], Any],
    predict: Callable[[Any, Tensor], Tensor],
    embed: Callable[[Task], Tensor],
    omega: Tensor,
    lam: float,
    loss_fn: Loss,
    kind: str = "values",
    normalize: str = "sum",
    temperature: float = 1.0,
    top_k: int | None = None,
    alignment: Alignment | None = None,
    heads_only: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """L = 1/T sum_i loss(f_i(X_i), Y_i) + lam * L_TR, as (L, task loss, L_TR, M, W).

    With heads_only, f_j(X_i) has the head of model j and everything else of model i.
    """
    models = [adapt_task(support) for support, _ in tasks]

    def asked(j: int, i: int) -> Any:
        if not heads_only:
            return models[j]
        heads = head_names(models[j])
        return {name: models[j if name in heads else i][name] for name in models[i]}

    T = len(tasks)
    predictions = [[predict(asked(j, i), tasks[i][1][0]) for i in range(T)] for j in range(T)]
    targets = [query[1] for _, query in tasks]
    task_loss = mean([loss_fn(predictions[i][i], targets[i]) for i in range(len(tasks))])
    M = relation_matrix([embed(task) for task in tasks], omega)
    W = relation_weights(M, normalize, temperature, top_k)
    relation = relation_loss(
        predictions, targets, M, loss_fn, kind, normalize, temperature, top_k, None, alignment
    )
    return task_loss + lam * relation, task_loss, relation, M, W


def adapt(
    net: Net,
    params: Params,
    names: Iterable[str],
    x: Tensor,
    y: Tensor,
    loss_fn: Loss,
    rate: Rate,
    steps: int,
    first_order: bool = False,
) -> Params:
    """theta^{s+1}_n = theta^s_n - rate(n, s) * grad_n loss(net(theta^s, x), y), n in names."""
    names = list(names)
    theta = dict(params)
    for name in names:
        if not theta[name].requires_grad:
            theta[name] = theta[name].detach().clone().requires_grad_()
    for step in range(steps):
        loss = loss_fn(net(theta, x), y)
        # A parameter that the loss does not read has the gradient zero and stays where it is.
        gradients = torch.autograd.grad(
            loss,
            [theta[name] for name in names],
            create_graph=not first_order,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for name, gradient in zip(names, gradients, strict=True):
            # Only the gradient is cut: theta and the rate still receive meta-gradients.
            gradient = gradient.detach() if first_order else gradient
            theta[name] = theta[name] - rate(name, step) * gradient
    return theta


# ---- encoders that look at the adaptation -------------------------------------------------------


def mixed(word: int) -> int:
    """The 32-bit finalizer: x ^= x >> 16; x *= 0x21f0aaad; x ^= x >> 15; x *= 0x735a2d97; x ^= x >> 15."""
    word ^= word >> 16
    word = (word * 0x21F0AAAD) % 2**32
    word ^= word >> 15
    word = (word * 0x735A2D97) % 2**32
    return word ^ (word >> 15)


def bucket_and_sign(p: int, dim: int, seed: int) -> tuple[int, int]:
    """x = mixed(mixed(p) xor key), key = mixed(mixed(low word of seed) xor high word of seed).

    The sign is -1 for odd x, else 1; the bucket is floor(x / 2) modulo dim.
    """
    low, high = seed % 2**32, (seed // 2**32) % 2**32
    word = mixed(mixed(p) ^ mixed(mixed(low) ^ high))
    return (word // 2) % dim, -1 if word % 2 else 1


def update_embedding(
    adapted: Params, params: Params, names: Iterable[str], dim: int, seed: int
) -> Tensor:
    """e[b] = sum over p with h(p) = b of s(p) (theta_i - theta)_p, p through all names in turn."""
    e = [torch.zeros((), dtype=torch.float64) for _ in range(dim)]
    p = 0
    for name in names:
        for after, before in zip(adapted[name].reshape(-1), params[name].reshape(-1), strict=True):
            bucket, sign = bucket_and_sign(p, dim, seed)
            e[bucket] = e[bucket] + sign * (after - before)
            p += 1
    return torch.stack(e)


def function_embedding(predict: Function, probe: Tensor) -> Tensor:
    """e = (f_i(p_1), f_i(p_2), ...), each flattened."""
    return torch.cat([predict(probe[k : k + 1]).reshape(-1) for k in range(len(probe))])


# ---- remembered models as Gaussians ---------------------------------------------------------------


def nearest_models(said: Sequence[Tensor], y: Tensor, K: int) -> list[int]:
    """The K models j with the least sum_so (F_jso - y_so)^2; the smaller j wins a tie."""
    errors = [float(((F_j - y) ** 2).sum().detach()) for F_j in said]
    return sorted(range(len(said)), key=lambda j: (errors[j], j))[:K]


def models_covariance(a: Sequence[Tensor], b: Sequence[Tensor], h: float) -> Tensor:
    """C_xz = h^2/K sum_j (a_jx - mean_j a_jx) (b_jz - mean_j b_jz)."""
    rows = []
    for x in range(len(a[0])):
        row = []
        for z in range(len(b[0])):
            left, right = mean([t[x] for t in a]), mean([t[z] for t in b])
            row.append(
                h**2 * mean([(s[x] - left) * (t[z] - right) for s, t in zip(a, b, strict=True)])
            )
        rows.append(torch.stack(row))
    return torch.stack(rows)


def remembered(
    F: Sequence[Tensor],
    f: Sequence[Tensor],
    y: Tensor,
    h: float,
    noise: float,
    priors: Pair | None = None,
    kernels: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture over j of Gaussian processes N(f_j, C) given y: its weights, mean and variance.

    One output: F_j [shots] and f_j [queries]. Weights are the densities N(y; F_j, A), A = C + noise I;
    means are f_j + C_xX A^-1 (y - F_j); the variance is E[var] + var[E]. Priors (support, queries) are a
    single mean in place of the f_j. Kernels b k are added to C: on the support, queries x support, and of
    each query with itself.
    """
    S, Q = len(y), len(f[0]) if f else len(priors[1])
    zero = torch.zeros((), dtype=torch.float64)
    if F:
        on_support, across = models_covariance(F, F, h), models_covariance(f, F, h)
        itself = [
            models_covariance([t[q : q + 1] for t in f], [t[q : q + 1] for t in f], h)[0, 0]
            for q in range(Q)
        ]
    else:
        on_support, across, itself = zero.expand(S, S), zero.expand(Q, S), [zero] * Q
    if kernels is not None:
        on_support, across = on_support + kernels[0], across + kernels[1]
        itself = [itself[q] + kernels[2][q] for q in range(Q)]
    A = on_support + noise * torch.eye(S, dtype=torch.float64)
    inverse = torch.linalg.inv(A)
    centres = list(zip(F, f, strict=True)) if priors is None else [priors]
    logs = []
    for centre, _ in centres:
        gap = y - centre
        logs.append(-0.5 * (S * math.log(2 * math.pi) + torch.logdet(A) + gap @ inverse @ gap))
    shift = max(float(log.detach()) for log in logs)
    densities = [torch.exp(log - shift) for log in logs]
    weights = [density / sum(densities) for density in densities]
    means, variances = [], []
    for q in range(Q):
        each = [
            on_queries[q] + across[q] @ inverse @ (y - centre) for centre, on_queries in centres
        ]
        middle = sum(w * g for w, g in zip(weights, each, strict=True))
        between = sum(w * (g - middle) ** 2 for w, g in zip(weights, each, strict=True))
        means.append(middle)
        variances.append(itself[q] - across[q] @ inverse @ across[q] + between)
    return torch.stack(weights), torch.stack(means), torch.stack(variances)


def remembered_coefficients(
    F: Sequence[Tensor], y: Tensor, m: Tensor, w: Sequence[Tensor], A: Tensor, h: float
) -> Tensor:
    """c_j = w_j + h^2/K (F_j - mean_k F_k) . A^-1 (y - m)."""
    residual = torch.linalg.solve(A, y - m)
    middle = mean(F)
    return torch.stack([w[j] + h**2 / len(F) * ((F[j] - middle) @ residual) for j in range(len(F))])


# ---- derivatives --------------------------------------------------------------------------------


def slope(
    function: Callable[[], Tensor], tensor: Tensor, direction: Tensor, delta: float = 1e-5
) -> float:
    """(function(t + delta d) - function(t - delta d)) / (2 delta): the derivative along d."""
    before, values = tensor.data.clone(), []
    try:
        for sign in (1.0, -1.0):
            tensor.data.copy_(before + sign * delta * direction)
            values.append(float(function().detach()))
    finally:
        tensor.data.copy_(before)
    return (values[0] - values[1]) / (2.0 * delta)


def finite_difference(
    function: Callable[[], Tensor], tensor: Tensor, delta: float = 1e-5
) -> Tensor:
    """(function(t + delta e_n) - function(t - delta e_n)) / (2 delta) for each entry n of t."""
    # .data leaves the version counter alone, so graphs built before stay usable afterwards.
    entries = tensor.data
    result = torch.zeros_like(entries)
    for index in itertools.product(*(range(size) for size in tensor.shape)):
        before = entries[index].item()
        try:
            entries[index] = before + delta
            above = float(function().detach())
            entries[index] = before - delta
            below = float(function().detach())
        finally:
            entries[index] = before
        result[index] = (above - below) / (2.0 * delta)
    return result
