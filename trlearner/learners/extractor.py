"""A feature extractor: a part of the learner's model, of the regularizer, or of neither."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trlearner.base import functional
from trlearner.base.checks import check_flag
from trlearner.base.types import State
from trlearner.engines.adapted import Models
from trlearner.engines.coupling import examine, examined
from trlearner.engines.head import HasModel
from trlearner.engines.task_learner import TaskLearner
from trlearner.learners.protocol import MODEL
from trlearner.tasks.model_call import run
from trlearner.tasks.nested import flat, per_task
from trlearner.tasks.samples import Samples
from trlearner.tasks.select import Select, check_select, select_samples

MODULE = "module."
"""Where an extractor's state keeps the tensors of its module that are not the learner's."""


class Extractor(nn.Module):
    """Runs a module with tensors from an explicit state.

    At every call it compares its module's parameters and buffers with the learner's, by identity. Those
    that are the learner's are read from the learner's part of the state. So it makes no difference which
    of the two was made first, and a copy of both works like the original.

    | the module is | its tensors are |
    |---|---|
    | a part of the learner | the learner's, in training, in its ``state_dict()``, on its device |
    | the regularizer's, ``own=True`` | registered: trained, saved and moved with the regularizer |
    | neither | inputs of the step, as they stand; you train, save and move the module |

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
        self.plain = isinstance(module, nn.Identity)
        if own:
            self.module = module
        else:  # past nn.Module, which would register it
            object.__setattr__(self, "module", module)

    def shared(self, learner: TaskLearner | None) -> dict[str, str]:
        """The names of the module's tensors that are the learner's, and the learner's names for them.

        Raises:
            ValueError: There are such tensors, but the regularizer owns the module.
        """
        return self._compared(learner)[1]

    def foreign(self, learner: TaskLearner | None) -> dict[str, Tensor]:
        """The module's tensors that are neither the learner's nor the regularizer's: inputs of a step.

        Raises:
            ValueError: As for `shared`.
        """
        mine, shared = self._compared(learner)
        if self.own:
            return {}
        return functional.graph_as_wanted({n: t for n, t in mine.items() if n not in shared})

    def _compared(self, learner: TaskLearner | None) -> tuple[dict[str, Tensor], dict[str, str]]:
        """All of the module's tensors by name, and `shared`."""
        mine = functional.members(self.module)
        if not mine or not isinstance(learner, nn.Module):
            return mine, {}
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

    def concerns(self, learner: TaskLearner) -> list[str]:
        """What to warn of before a step that trains: parameters that no optimizer is likely to hold.

        Raises:
            ValueError: As for `shared`.
        """
        mine, shared = self._compared(learner)
        if self.own or not torch.is_grad_enabled():
            return []
        lost = [name for name, t in mine.items() if t.requires_grad and name not in shared]
        if not lost:
            return []
        return [
            f"the extractor's {_listed(lost)} {'wants' if len(lost) == 1 else 'want'} gradients, but "
            f"{'belongs' if len(lost) == 1 else 'belong'} neither to the learner nor to the regularizer: "
            "an optimizer made from learner.parameters() and reg.parameters() does not train the extractor. "
            "Pass own=True to the encoder, freeze the extractor with extractor.requires_grad_(False), or "
            "train it yourself. If it was to be a part of the learner, build the encoder from this "
            "learner's model, e.g. InputEncoder(learner.model.features, dim=64)."
        ]

    def prepare(self, learner: TaskLearner | None, support: Samples) -> dict[str, Tensor]:
        """Checks the module before a step, and returns what is `foreign`."""
        if self.plain:
            return {}
        self.check(support)
        return self.foreign(learner)

    def check(self, support: Samples) -> None:
        """Refuse BatchNorm statistics that were never updated, and see whether samples are mixed.

        See `check_statistics` and `trlearner.engines.coupling.examine`.
        """
        functional.check_statistics(self.module, "extractor")
        if self not in examined:
            examine(self, self.module, lambda x: run(self.module, {}, x), support)

    def features(self, models: Models, state: State, x: Any, mask: Tensor | None = None) -> Tensor:
        """Features of inputs ``[tasks, samples, ...]``, flattened to ``[tasks, samples, features]``.

        Args:
            models: Whose learner's tensors are read from `models.state`.
            state: The encoder's tensors; the module's that are not the learner's below ``extractor.module``.
            x: Inputs of every task.
            mask: ``[tasks, samples]``, true where a sample is real.

        Raises:
            ValueError: The module lies elsewhere than `x`, or as for `shared`.
        """
        own = {} if self.plain else functional.below("extractor." + MODULE, state)
        found = self.run(models.learner, models.state, own, x, mask)
        if not found.is_floating_point():  # tokens, say, which have no precision of their own
            found = found.to(functional.precision({**models.state, **state}))
        return found

    def select(self, select: Select, models: Models, state: State, support: Samples) -> Samples:
        """The most telling samples of every task by their features; see `select_samples`.

        Args:
            select: Which.
            models: As in `features`.
            state: As in `features`.
            support: The samples.
        """
        check_select(select)  # it may have been set anew
        with torch.no_grad():
            features = self.features(models, state, support.x, support.mask)
            return select_samples(select, features, support)

    def run(
        self,
        learner: TaskLearner | None,
        theirs: State,
        own: State,
        x: Any,
        mask: Tensor | None = None,
    ) -> Tensor:
        """As `features`, but whole numbers stay whole.

        Args:
            learner: Whose tensors are read from `theirs`.
            theirs: The learner's parameters and buffers.
            own: The module's other tensors, by its own names. What it lacks is read from the module.
            x: As for `features`.
            mask: As for `features`.
        """
        return flat(
            x.contiguous() if self.plain else self._called(learner, theirs, own, x, mask), 2
        )

    def _called(
        self,
        learner: TaskLearner | None,
        theirs: State,
        own: State,
        x: Any,
        mask: Tensor | None,
    ) -> Any:
        local = dict(own)
        if shared := self.shared(learner):
            assert isinstance(learner, HasModel)
            model = {MODEL + name: t for name, t in learner.model_state(theirs).items()}
            there = {**theirs, **model}
            local |= {name: there[other] for name, other in shared.items()}
        try:
            if functional.couples_samples(self.module):
                return per_task(lambda i, keep: run(self.module, local, x[i][keep]), mask, len(x))
            return run(self.module, local, x.flatten(0, 1)).unflatten(0, (len(x), -1))
        except RuntimeError as error:
            if not isinstance(error, (torch.OutOfMemoryError, functional.Busy)):
                self._explain(learner, x, error)
            raise

    def _explain(self, learner: TaskLearner | None, x: Any, error: RuntimeError) -> None:
        """Says so where a call failed because nobody moved the module to where its inputs are."""
        if self.own:
            return
        for name, tensor in self.foreign(learner).items():
            floats = tensor.is_floating_point() and x.is_floating_point()
            if tensor.device != x.device or (floats and tensor.dtype != x.dtype):
                raise ValueError(
                    f"the extractor's {name!r} is {tensor.dtype} on {tensor.device}, "
                    f"but the inputs are {x.dtype} on {x.device}; it said: {error}. learner.to(...) and "
                    "reg.to(...) do not move an extractor that is a part of neither: call "
                    "extractor.to(...) as well, or pass own=True to the encoder."
                ) from error


def extractor_of(encoder: nn.Module) -> Extractor | None:
    """The extractor of an encoder that describes a task by features of its samples."""
    found = getattr(encoder, "extractor", None)
    return found if isinstance(found, Extractor) else None


def _listed(names: dict[str, str] | list[str]) -> str:
    """The first name, and how many more there are."""
    first, *others = names
    return f"{first!r}" + (f" and {len(others)} more" if others else "")
