"""What torch's errors mean for a meta-learner, and what to do about them."""

from __future__ import annotations

import re
import traceback

from trlearner.diagnostics.doctor.finding import EVERY, TOGETHER, Finding, Kind
from trlearner.engines.second_order import ONCE

IN_PLACE = r"modified by an inplace operation|leaf Variable that requires grad"
ONE_BY_ONE = "or leave it: engine='auto' runs one task at a time ('loop')"


CHECKPOINT = " (in torch.utils.checkpoint)"

KNOWN = (
    *((once.error, once.problem, once.fix) for once in ONCE),
    (
        r"derivative for .*_embedding_bag",
        "is an embedding bag, which has no second derivative.",
        "use nn.Embedding and add up its rows, or use first_order=True.",
    ),
    (
        r"scale_grad_by_freq=True",
        "counts its indices over all tasks together under torch.vmap.",
        f"pass scale_grad_by_freq=False, {ONE_BY_ONE}.",
    ),
    (
        r"sparse tensors|Sparse(?:CPU|CUDA)",
        "has sparse gradients, which torch.vmap cannot run.",
        f"pass sparse=False, {ONE_BY_ONE}.",
    ),
    (
        r"NotFinite",
        "has outputs or gradients that are not finite on this batch.",
        "look for a division by zero, or a root, norm or logarithm of zero; add a small number there, "
        "e.g. (x + 1e-6).sqrt(). For nn.LPPool use average pooling of x.square() + 1e-6, then .sqrt().",
    ),
    (
        r"marked with @once_differentiable",
        "uses a torch.autograd.Function that can be differentiated only once.",
        "write its backward with differentiable operations and drop @once_differentiable, or use "
        "first_order=True.",
    ),
    (
        r"support double backward",
        "was compiled by torch.compile, which has no second derivative.",
        "pass the model as it was before torch.compile (model._orig_mod) and use "
        "engine='compiled', which compiles the whole step.",
    ),
    (
        r"dynamo-optimized function",
        "was compiled by torch.compile, which cannot be traced once more.",
        "pass the model as it was before torch.compile (model._orig_mod).",
    ),
    (
        r"use_reentrant=True",
        "uses reentrant checkpointing, which torch.autograd.grad cannot go through.",
        "pass use_reentrant=False to torch.utils.checkpoint.",
    ),
    (
        r"derivative for '?([\w:.]+)'? is not implemented",
        "uses {0}, through which torch has no further derivative.",
        "compute it by other operations, or use first_order=True.",
    ),
    (
        IN_PLACE,
        "overwrites in place a tensor that a gradient still needs.",
        "pass inplace=False, or write `x = x + y` for `x += y`.",
    ),
    (
        r"Batching rule not implemented for aten::(?:lstm|gru|rnn)",
        "is a recurrent layer, which torch.vmap cannot run.",
        f"write the cell with nn.Linear layers, {ONE_BY_ONE}. On a GPU put "
        "`with torch.backends.cudnn.flags(enabled=False):` around the step: cuDNN's recurrent layers "
        "have no second derivative.",
    ),
    (
        r"data-dependent control flow",
        "branches on the values of tensors, which cannot be run for all tasks at once.",
        f"use torch.where, {ONE_BY_ONE}.",
    ),
    (
        r"calling \.item\(\)",
        "reads a number out of a tensor (.item(), float() or int()).",
        f"keep it a tensor, {ONE_BY_ONE}.",
    ),
    (
        r"dynamic shape",
        "selects by the values of tensors (boolean mask, nonzero), so that shapes depend on them.",
        f"multiply by the mask or use torch.where, {ONE_BY_ONE}.",
    ),
    (
        r"Batch norm got a batched tensor",
        "records running statistics in its forward, which torch.vmap cannot.",
        f"build it with track_running_stats=False, use GroupNorm, {ONE_BY_ONE}.",
    ),
    (
        r"out= or view ops",
        "writes into a buffer in its forward (as spectral norm does), which torch.vmap cannot.",
        f"call .eval() on this layer, use weight_norm, {ONE_BY_ONE}.",
    ),
    (
        r"is not possible because there exists a Tensor|output with shape .* doesn't match",
        "writes what differs from task to task into a shared tensor in place.",
        f"assign a new tensor (`self.mean = 0.9 * self.mean + ...`), {ONE_BY_ONE}.",
    ),
    (
        "gen_vmap_plumbing|" + re.escape(CHECKPOINT),
        "keeps tensors beyond its call (as checkpointing does), which torch.vmap cannot follow.",
        f"call the layers without torch.utils.checkpoint, {ONE_BY_ONE}.",
    ),
    (
        r"setup_context|generate_vmap_rule",
        "uses a torch.autograd.Function that torch.vmap cannot run.",
        "split its forward into forward and setup_context, set generate_vmap_rule = True, "
        f"{ONE_BY_ONE}.",
    ),
    (
        r"DataDependent|aten\._local_scalar_dense",
        "reads values out of a tensor (a branch, .item()), which cannot be traced.",
        "use torch.where, or engine='batched'.",
    ),
    (
        r"DynamicOutputShape",
        "selects by the values of tensors (boolean mask, nonzero), which cannot be traced.",
        "multiply by the mask or use torch.where, or use engine='batched'.",
    ),
    (
        r"convert all Tensors to FakeTensors",
        "uses a tensor that is neither parameter, buffer nor argument.",
        "make it a buffer with self.register_buffer(...), or use engine='batched'.",
    ),
)
"""Pattern of an error, problem, fix; ``{0}`` is the pattern's first group. The first that matches counts."""

GENERIC: dict[str, tuple[Kind, tuple[str, ...], str, str]] = {
    "forward": ("fails", EVERY, "fails in its forward", "make model(x) run on one task's inputs."),
    "second": (
        "fails",
        EVERY,
        "fails in a second-order step",
        "change it, or use first_order=True.",
    ),
    "vmap": ("slow", TOGETHER, "cannot run under torch.vmap", f"change it, {ONE_BY_ONE}."),
    "trace": ("slow", ("compiled",), "cannot be traced", "use engine='batched' or 'auto'."),
}


def explain(layer: str, type_name: str, trial: str, error: Exception) -> Finding:
    """The finding for a layer that failed a trial.

    Args:
        layer: Its name.
        type_name: Its type's name, with which the problem begins.
        trial: ``"forward"``, ``"second"``, ``"vmap"`` or ``"trace"``.
        error: What torch said; quoted where it is not known.

    Example:
        >>> error = RuntimeError("the derivative for '_cdist_backward' is not implemented.")
        >>> found = explain("metric", "Distance", "second", error)
        >>> found.kind, found.fix
        ('fails', 'pass compute_mode="use_mm_for_euclid_dist", or use first_order=True.')
    """
    kind, engines, problem, fix = GENERIC[trial]
    said = f"{type(error).__name__}: {error}"
    passed = traceback.extract_tb(error.__traceback__)
    if any(frame.filename.endswith("torch/utils/checkpoint.py") for frame in passed):
        said += CHECKPOINT  # torch 2.6 does not say so itself
    for pattern, known, mend in KNOWN:
        match = re.search(pattern, said)
        if match and (trial != "forward" or pattern == IN_PLACE):
            return Finding(
                layer, kind, f"{type_name} {known.format(*match.groups())}", mend, engines
            )
    first = said.strip().splitlines()[0]
    return Finding(layer, kind, f"{type_name} {problem}: {first}", fix, engines)
