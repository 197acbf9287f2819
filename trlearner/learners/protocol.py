"""What a learner is: an `nn.Module` over pure functions of an explicit state."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trlearner.base import functional
from trlearner.base.checks import check_flag, check_function, check_loss_fn, check_whole, shown
from trlearner.base.functional import OneThread
from trlearner.base.types import Fast, LossFn, State
from trlearner.engines import compiled
from trlearner.engines.adapted import Adapted, Engine, adapt
from trlearner.engines.blame import blaming
from trlearner.engines.choose import check_name, choose, without_graph
from trlearner.engines.coupling import examine_learner, examined
from trlearner.engines.second_order import explain_backward, sound
from trlearner.engines.task_learner import InnerLoop, StepSize, at_step
from trlearner.learners.adapts import as_patterns, matches
from trlearner.learners.recompute import recomputed
from trlearner.tasks.ignored import check_labelled
from trlearner.tasks.model_call import Call, answer, as_predictions, run
from trlearner.tasks.nested import Data, Layout, as_data, layout_of, raw
from trlearner.tasks.samples import Pair, Samples, samples_of

MODEL = "model."


class Learner(nn.Module, abc.ABC):
    """A model that adapts to tasks.

    A subclass says in `inner` how one task is adapted to and in `predict` how an adapted model
    predicts; engines run many tasks through them. `state` maps the names of
    `named_parameters()` and `named_buffers()` to tensors, and is all that these functions read.

    Args:
        model: The user's model; never wrapped, patched or renamed.
        steps: Inner steps; ``0`` for learners that take none.
        engine: ``"auto"``, ``"tune"``, ``"higher"``, ``"loop"``, ``"channels_last"``, ``"batched"`` or
            ``"compiled"``.
        call: ``(model, x) -> output``, how the model is called. By default a dict of inputs is passed by
            name, a tuple or list one by one, a tensor alone.
        output: The part of the model's output that holds the predictions, ``"logits"`` for instance: a name
            or a position. By default all of it: a tensor, or dicts, tuples and lists of tensors.
    """

    layout: Layout | None = None
    outside_graph = ("layout",)

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int = 0,
        engine: str = "auto",
        call: Call | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}.")
        if call is not None:
            check_function("call", call, "(model, x) -> predictions")
        if output is not None and (isinstance(output, bool) or not isinstance(output, (str, int))):
            raise TypeError(
                "output must name the part of the model's output that holds predictions, a name or a "
                f"position, got {shown(output)}."
            )
        self.call = call
        self.output = output
        check_steps(steps)
        check_name(engine)
        self.model = model
        self.steps = steps
        self.engine = engine
        self.shares = type(self).embed is not Learner.embed  # whether it computes anything

    # ---- the pure seam: one task, an explicit state -------------------------------------------

    @abc.abstractmethod
    def inner(self, state: State, loop: InnerLoop) -> Fast:
        """Adapts to the support set that `loop` lends."""

    @abc.abstractmethod
    def predict(self, state: State, fast: Fast, features: Data) -> Any:
        """Predictions ``[samples, *outputs]`` from what `embed` returned."""

    def embed(self, state: State, x: Data) -> Any:
        """What all tasks compute alike: nothing, unless a learner says otherwise."""
        return x

    def prepare(self, samples: Samples) -> None:
        """Called before these samples are run, outside of any graph: a learner may look at them."""
        return

    def model_state(self, state: State) -> State:
        """The model's own parameters and buffers, by its own names."""
        return {n.removeprefix(MODEL): t for n, t in state.items() if n.startswith(MODEL)}

    def run(self, state: State, x: Any) -> Any:
        """The model's predictions ``[samples, ...]``, with `state` in place of its tensors, by its names."""
        if isinstance(x, Tensor) and self.call is None and self.output is None:
            found = functional.pure_call(self.model, state, x)  # what most models take and return
            if isinstance(found, Tensor):
                return found
            found = as_predictions(found)
        else:
            found = run(self.model, state, x, self.call, self.output)
        if not isinstance(found, Tensor):
            self.layout = layout_of(found, 1)
        return found

    def couples_samples(self) -> bool:
        """Whether a sample's prediction depends on the others of its batch (BatchNorm)."""
        return functional.couples_samples(self.model)

    # ---- the shell ----------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name; without their graph where gradients are off."""
        return functional.tensors(self)

    def adapt(
        self,
        support: Samples | Pair,
        loss_fn: LossFn,
        *,
        steps: int | None = None,
    ) -> Adapted:
        """One adapted model per task, differentiable in the learner's parameters.

        Under ``torch.no_grad()`` (test time) no graph is kept and memory does not grow with steps.

        Args:
            support: The tasks' support samples, ``[tasks, samples, ...]``.
            loss_fn: ``(predictions [samples, ...], targets [samples, ...]) -> scalar``, for one task.
            steps: Inner steps, if others than the learner's own.

        Example:
            >>> import torch
            >>> import trlearner as tr
            >>> learner = tr.MAML(nn.Linear(1, 1), lr=0.1, steps=5)
            >>> x = torch.rand(4, 10, 1)
            >>> learner.adapt((x, 3 * x), nn.functional.mse_loss)(x).shape
            torch.Size([4, 10, 1])
        """
        samples = samples_of("support", support)
        check_loss_fn(loss_fn)
        if torch.is_inference_mode_enabled():
            # Inner gradients need autograd, which tensors of inference mode refuse.
            with torch.inference_mode(False), torch.no_grad():
                return self.adapt(samples.clone(), loss_fn, steps=steps)
        steps = self.steps if steps is None else steps
        check_steps(steps)
        with blaming(self, loss_fn, {"batch.support": samples}):
            return self._adapt(samples, loss_fn, steps)

    def _adapt(self, samples: Samples, loss_fn: LossFn, steps: int) -> Adapted:
        engine, state = self.engine_for(samples, loss_fn), self.state()
        if engine.graphs and not torch.is_grad_enabled():
            return compiled.adapt(engine, self, state, samples, loss_fn, steps)
        # A graph that is compiled knows no derivatives; where these are wanted, autograd has them.
        return adapt(without_graph(engine), self, state, samples, loss_fn, steps)

    def check(self, samples: Samples, loss_fn: LossFn, *others: Samples) -> None:
        """Refuse samples, a loss or a model that cannot be adapted with.

        Args:
            samples: What is adapted on.
            loss_fn: For one task.
            *others: Further samples that adapted models are asked about.

        Raises:
            ValueError: Naming what does not fit, and what to do.
        """
        functional.check_statistics(self.model)
        self.prepare(samples)
        for some in (samples, *others):
            if some.labelled:
                check_labelled(loss_fn, some.y, some.mask)
        if self not in examined:
            examine_learner(self, samples, loss_fn)

    def engine_for(self, samples: Samples, loss_fn: LossFn, *others: Samples) -> Engine:
        """The engine for these samples, once `check` has passed; arguments as there.

        Raises:
            ValueError: As for `check`, or the learner's engine cannot run the samples.
        """
        self.check(samples, loss_fn, *others)
        masked = any(s.mask is not None for s in (samples, *others))
        seen = sum(s.x.shape[1] for s in (samples, *others))
        return choose(self, self.engine, samples, loss_fn, masked, seen)

    def forward(self, x: Any) -> Any:
        """The model's predictions before adaptation."""
        with OneThread(self.model.modules()):
            return raw(answer(self.model, as_data(x), self.call, self.output))


def _less(value: Tensor, size: StepSize, step: int, gradient: Tensor) -> Tensor:
    """``value - size * gradient``; in one operation, where the size is a number."""
    if not isinstance(size, (float, Tensor)):
        size = at_step(size, step)
    if isinstance(size, Tensor):
        return value - size * gradient
    return torch.sub(value, gradient, alpha=size)


def check_steps(steps: int) -> None:
    """Refuse what is no number of inner steps.

    Raises:
        ValueError: Naming it.
    """
    check_whole("steps", steps, least=0)


def check_learner(value: object) -> None:
    """Refuse what is no learner.

    Raises:
        TypeError: Saying how to make one.
    """
    if not isinstance(value, Learner):
        raise TypeError(
            f"learner must be a trlearner Learner such as tr.MAML(model), got {type(value).__name__}."
        )


class GradientLearner(Learner, abc.ABC):
    """A learner whose inner loop is gradient descent: ``p <- p - rate * gradient``.

    Args:
        model: The user's model.
        steps: Inner steps.
        first_order: Treat inner gradients as constants (FOMAML).
        engine: As in `Learner`.
        recompute: Keep only what each inner step starts from and compute the step again in the backward pass:
            memory then grows with steps x parameters, no longer with steps x activations. It changes no
            result, and nothing at all where no graph is kept (``first_order``, ``torch.no_grad()``).
        adapts: Names or patterns of the parameters that adapt; ``None`` for all that are not frozen.
        call: As in `Learner`.
        output: As in `Learner`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        first_order: bool = False,
        engine: str = "auto",
        recompute: bool = False,
        adapts: str | Sequence[str] | None = None,
        call: Call | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__(model, steps=steps, engine=engine, call=call, output=output)
        check_flag("first_order", first_order)
        check_flag("recompute", recompute)
        self.first_order = first_order
        self.recompute = recompute
        self.adapts = as_patterns(adapts, model)

    @abc.abstractmethod
    def start(self, state: State) -> Fast:
        """What the inner loop moves, where it starts; by names of the state."""

    @abc.abstractmethod
    def step_sizes(self, state: State, names: Sequence[str]) -> Mapping[str, StepSize]:
        """The step size for every entry of `start`: a number, a tensor of its shape, or one a step.

        Args:
            state: As in `start`.
            names: Of the entries.
        """

    def inner(self, state: State, loop: InnerLoop) -> Fast:
        """``loop.steps`` steps down the gradient of the support loss."""
        start = self.start(state)
        sizes = self.step_sizes(state, list(start))

        def move(fast: Fast, step: int) -> Fast:
            gradients = loop.gradient(fast, self.first_order)
            return {
                name: value
                if (g := gradients[name]) is None
                else _less(value, sizes[name], step, g)
                for name, value in fast.items()
            }

        again = self.recompute and not self.first_order and torch.is_grad_enabled()
        fast = loop.spread(start)
        for step in range(loop.steps):
            once = partial(move, step=step)
            fast = recomputed(once, fast, state.values()) if again else once(fast)
        mode = self.training, loop.features.dtype, loop.features.device.type
        if mode not in sound.get(self, ()):
            explain_backward(self, mode, fast.values())
        return fast

    def predict(self, state: State, fast: Fast, features: Data) -> Any:
        """The model with its adapted parameters in place."""
        return self.run(self.model_state({**state, **fast}), features)

    def trainable(self, prefix: str = "") -> list[str]:
        """The state's names of the model's parameters that adapt and are not frozen, below `prefix`."""
        names = functional.trainable(self.model)
        if self.adapts is not None:
            names = [name for name in names if matches(name, self.adapts)]
        return [MODEL + name for name in names if name.startswith(prefix)]

    def adapting_names(self) -> list[str]:
        """The model's names of the parameters that adapt, frozen or not."""
        names = [name for name, _ in self.model.named_parameters()]
        return names if self.adapts is None else [n for n in names if matches(n, self.adapts)]
