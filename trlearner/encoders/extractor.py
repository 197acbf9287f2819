"""A feature extractor: a part of the learner's model, of the regularizer, or of neither."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from trlearner import functional
from trlearner.checks import check_flag
from trlearner.coupling import examine
from trlearner.learners.protocol import MODEL, Learner
from trlearner.sampler.select import Select, select_samples
from trlearner.samples import Samples
from trlearner.types import State

REGISTERED = "regularizer.encoder.extractor.module."
"""Where the state keeps the parameters of an extractor that the regularizer owns."""
FOREIGN = "regularizer.extractor."
"""Where it keeps those that belong neither to the learner nor to the regularizer."""


class Extractor(nn.Module):
    """Runs a module with tensors from an explicit state.

    At every call it compares its module's parameters and buffers with the learner's, by identity. Those
    that are the learner's are read from the learner's part of the state. So it makes no difference which
    of the two was made first, and a copy of both works like the original.

    | the module is | its tensors are |
    |---|---|
    | a part of the learner | the learner's, in training, in its ``state_dict()``, on its device |
    | the regularizer's, ``own=True`` | registered: trained, saved and moved with the regularizer |
    | neither | inputs of the step, as they stand; whoever made the module trains, saves and moves it |

    Args:
        module: Maps inputs ``[samples, ...]`` to ``[samples, ...]``; ``None`` passes inputs on.
        own: Register the module here.
    """

    module: nn.Module

    def __init__(self, module: nn.Module | None, own: bool = False) -> None:
        super().__init__()
        if module is not None and not isinstance(module, nn.Module):
            raise TypeError(
                f"extractor must be an nn.Module or None, got {type(module).__name__}. Parameters that "
                "a plain function closes over could not be found; wrap it in an nn.Module."
            )
        check_flag("own", own)
        self.own = own
        module = nn.Identity() if module is None else module
        if own:
            self.module = module
        else:  # past nn.Module, which would register it
            object.__setattr__(self, "module", module)

    def shared(self, learner: Learner) -> dict[str, str]:
        """The names of the module's tensors that are the learner's, and the learner's names for them.

        Raises:
            ValueError: There are such tensors, but the regularizer owns the module.
        """
        return self._compared(learner)[1]

    def foreign(self, learner: Learner) -> dict[str, Tensor]:
        """Tensors that are neither the learner's nor the regularizer's: inputs of a step, under `FOREIGN`.

        Raises:
            ValueError: As for `shared`.
        """
        mine, shared = self._compared(learner)
        if self.own:
            return {}
        found = {FOREIGN + name: t for name, t in mine.items() if name not in shared}
        return functional.graph_as_wanted(found)

    def _compared(self, learner: Learner) -> tuple[dict[str, Tensor], dict[str, str]]:
        """All of the module's tensors by name, and `shared`."""
        mine = functional.members(self.module)
        if not mine:
            return {}, {}
        theirs = {id(tensor): name for name, tensor in functional.members(learner).items()}
        found = {name: theirs[id(t)] for name, t in mine.items() if id(t) in theirs}
        if self.own and found:
            raise ValueError(
                f"own=True makes the extractor a part of the regularizer, but its {_listed(found)} "
                f"{'belongs' if len(found) == 1 else 'belong'} to the learner. Leave own=True out: the "
                "encoder finds what is the learner's. Give the optimizer the extractor's other layers by "
                "hand: [*learner.parameters(), *reg.parameters(), *layers.parameters()]."
            )
        return mine, found

    def check(self, support: Samples) -> None:
        """Refuse BatchNorm statistics that were never updated, and see whether samples are mixed.

        See `check_statistics` and `trlearner.coupling.examine`.
        """
        functional.check_statistics(self.module, "extractor")
        examine(self, self.module, lambda x: functional.pure_call(self.module, {}, x), support)

    def features(
        self, learner: Learner, state: State, x: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Features of inputs ``[tasks, samples, ...]``, flattened to ``[tasks, samples, features]``.

        Args:
            learner: Whose parameters are read from `state`.
            state: The learner's parameters and buffers; the others under `REGISTERED` or `FOREIGN`. What
                it lacks is read from the module as it stands.
            x: Inputs of every task.
            mask: ``[tasks, samples]``, true where a sample is real.

        Raises:
            ValueError: The module lies elsewhere than `x`, or as for `shared`.
        """
        local = self._local_state(learner, state)
        try:
            found = self._run(local, x, mask)
        except RuntimeError as error:
            self._explain(learner, x, error)
            raise
        if not found.is_floating_point():  # tokens, say, which have no precision of their own
            found = found.to(functional.precision(state))
        return found.flatten(2) if found.ndim > 2 else found[..., None]

    def select(
        self, select: Select | None, learner: Learner, state: State, support: Samples
    ) -> Samples:
        """The most telling samples of every task by their features; see `select_samples`.

        Args:
            select: Which; ``None`` for all.
            learner: As in `features`.
            state: As in `features`.
            support: The samples.
        """
        if select is None:
            return support
        with torch.no_grad():
            features = self.features(learner, state, support.x, support.mask)
            return select_samples(select, features, support)

    def _run(self, local: State, x: Tensor, mask: Tensor | None) -> Tensor:
        if functional.couples_samples(self.module):
            return functional.per_task(
                lambda i, keep: functional.pure_call(self.module, local, x[i][keep]), mask, len(x)
            )
        together = rearrange(x, "tasks samples ... -> (tasks samples) ...")
        found = functional.pure_call(self.module, local, together)
        return rearrange(found, "(tasks samples) ... -> tasks samples ...", tasks=len(x))

    def _explain(self, learner: Learner, x: Tensor, error: RuntimeError) -> None:
        """Says so where a call failed because nobody moved the module to where its inputs are."""
        if self.own:
            return
        for name, tensor in self.foreign(learner).items():
            floats = tensor.is_floating_point() and x.is_floating_point()
            if tensor.device != x.device or (floats and tensor.dtype != x.dtype):
                raise ValueError(
                    f"the extractor's {name.removeprefix(FOREIGN)!r} is {tensor.dtype} on {tensor.device}, "
                    f"but the inputs are {x.dtype} on {x.device}; it said: {error}. learner.to(...) and "
                    "reg.to(...) do not move an extractor that is a part of neither: call "
                    "extractor.to(...) as well, or pass own=True to the encoder."
                ) from error

    def _local_state(self, learner: Learner, state: State) -> dict[str, Tensor]:
        prefix = REGISTERED if self.own else FOREIGN
        local = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        if shared := self.shared(learner):
            model = {MODEL + name: t for name, t in learner.model_state(state).items()}
            theirs = {**state, **model}
            local |= {name: theirs[other] for name, other in shared.items()}
        return local


def extractor_of(encoder: nn.Module) -> Extractor | None:
    """The extractor of an encoder that describes a task by features of its samples."""
    found = getattr(encoder, "extractor", None)
    return found if isinstance(found, Extractor) else None


def untrained(state: State) -> list[str]:
    """What to warn of in a step that trains: gradients that no optimizer is likely to wait for."""
    names = [n.removeprefix(FOREIGN) for n in state if n.startswith(FOREIGN)]
    lost = [name for name in names if state[FOREIGN + name].requires_grad]
    if not lost:
        return []
    one = len(lost) == 1
    return [
        f"the extractor's {_listed(lost)} {'wants' if one else 'want'} gradients, but "
        f"{'belongs' if one else 'belong'} neither to the learner nor to the regularizer: "
        "an optimizer made from learner.parameters() and reg.parameters() does not train the extractor. "
        "Pass own=True to the encoder, freeze the extractor with extractor.requires_grad_(False), or "
        "train it yourself. If it was to be a part of the learner, build the encoder from this "
        "learner's model, e.g. InputEncoder(learner.model.features, dim=64)."
    ]


def _listed(names: dict[str, str] | list[str]) -> str:
    """The first name, and how many more there are."""
    first, *others = names
    return f"{first!r}" + (f" and {len(others)} more" if others else "")
