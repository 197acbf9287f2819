"""A feature extractor that may be a part of the learner's own model."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from einops import rearrange
from torch import Tensor, nn

from trlearner import functional
from trlearner.coupling import examine
from trlearner.learners.protocol import MODEL, Learner, living, watching
from trlearner.one_thread import OneThread
from trlearner.samples import Samples
from trlearner.types import SeesParts, State


class Extractor(nn.Module):
    """Runs a module with the learner's parameters where it shares them, with its own elsewhere.

    What belongs to a learner's model is recognized by identity and never registered here, so it
    shows up neither in `parameters()` nor in `state_dict()`; everything else is registered under
    ``own``. It makes no difference which of learner and extractor was made first.

    Args:
        module: Maps inputs ``[samples, ...]`` to ``[samples, ...]``; ``None`` passes inputs on.
        borrowed: It is a part of a model that a loop of the user's own trains: it is read as it stands,
            and nothing of it is ever registered here.
    """

    outside_graph = ("_theirs",)

    def __init__(self, module: nn.Module | None, borrowed: bool = False) -> None:
        super().__init__()
        if module is not None and not isinstance(module, nn.Module):
            raise TypeError(
                f"extractor must be an nn.Module or None, got {type(module).__name__}. Parameters that "
                "a plain function closes over could not be found; wrap it in an nn.Module."
            )
        # In a tuple, so that nn.Module does not register it.
        self._module = (nn.Identity() if module is None else module,)
        self.borrowed = borrowed
        self.own: nn.Module | None = None if borrowed else self.module
        # The ids of modules and parameters of ours that are a learner's, also of one long gone.
        self._theirs: set[int] = set()
        for learner in living:
            self.notice(learner)
        watching.add(self)

    @property
    def module(self) -> nn.Module:
        """The module as the user gave it."""
        return self._module[0]

    def notice(self, learner: Learner) -> None:
        """Lets go of what turns out to belong to a learner; never takes anything back."""
        ours = {id(part) for part in (*self.module.modules(), *self.module.parameters())}
        theirs = {id(part) for part in (*learner.modules(), *learner.parameters())}
        self._theirs |= ours & theirs
        if not self.borrowed:
            self.own = _own(self.module, self._theirs)

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
            state: The learner's parameters and buffers, and these own ones under `prefix`.
            x: Inputs of every task.
            mask: ``[tasks, samples]``, true where a sample is real.
        """
        local = self._local_state(learner, state)
        if functional.couples_samples(self.module):
            found = functional.per_task(
                lambda i, keep: functional.pure_call(self.module, local, x[i][keep]), mask, len(x)
            )
        else:
            together = rearrange(x, "tasks samples ... -> (tasks samples) ...")
            found = functional.pure_call(self.module, local, together)
            found = rearrange(found, "(tasks samples) ... -> tasks samples ...", tasks=len(x))
        if not found.is_floating_point():  # tokens, say, which have no precision of their own
            found = found.to(functional.precision(state))
        return found.flatten(2) if found.ndim > 2 else found[..., None]

    def _local_state(self, learner: Learner, state: State) -> dict[str, Tensor]:
        with OneThread([*learner.modules(), *self.module.modules()]):
            theirs = {id(p): n for n, p in learner.named_parameters()}
            theirs |= {id(b): n for n, b in learner.named_buffers()}
            mine = (*self.module.named_parameters(), *self.module.named_buffers())
        state = {**state, **{MODEL + n: t for n, t in learner.model_state(state).items()}}
        local = {}
        for name, tensor in mine:
            if id(tensor) in theirs:
                local[name] = state[theirs[id(tensor)]]
            elif OWN + name in state:
                local[name] = state[OWN + name]
            elif self.borrowed:
                local[name] = tensor
            else:
                raise ValueError(
                    f"the extractor's {name!r} belongs to a learner, but not to the one it is used "
                    "with. Build the encoder from a part of this learner's model, e.g. "
                    "InputEncoder(learner.model.features, dim=64)."
                )
        return local


@runtime_checkable
class HasExtractor(Protocol, metaclass=SeesParts):
    """An encoder that describes a task by features of its samples."""

    extractor: Extractor


OWN = "regularizer.encoder.extractor.own."
"""Where a regularizer's state keeps the extractor's own parameters."""


def _own(module: nn.Module, theirs: set[int]) -> nn.Module | None:
    """The part of `module` that belongs to no learner: all, nothing, or a tree like it."""
    if id(module) in theirs:
        return None
    if not any(id(part) in theirs for part in (*module.modules(), *module.parameters())):
        return module
    tree = nn.Module()
    for name, p in module.named_parameters(recurse=False):
        if id(p) not in theirs:
            tree.register_parameter(name, p)
    for name, buffer in module.named_buffers(recurse=False):
        tree.register_buffer(name, buffer, name not in module._non_persistent_buffers_set)
    for name, child in module.named_children():
        own = _own(child, theirs)
        if own is not None:
            tree.add_module(name, own)
    return tree
