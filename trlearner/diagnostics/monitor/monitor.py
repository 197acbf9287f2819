"""`RelationMonitor`: what the regularizer thinks and does, in TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trlearner.base.checks import check_function, check_instance, check_number, check_whole
from trlearner.base.warn import warn
from trlearner.diagnostics.monitor import scalars
from trlearner.diagnostics.monitor.fetch import fetch
from trlearner.diagnostics.monitor.gradients import products
from trlearner.diagnostics.monitor.history import LIMIT, History
from trlearner.diagnostics.monitor.knowledge import Knowledge, Known, check_known
from trlearner.diagnostics.monitor.settings import describe, write_hparams
from trlearner.diagnostics.monitor.throttle import Throttle
from trlearner.learners.protocol import Learner
from trlearner.memory.recall import Recalled
from trlearner.regularizer.output import Output, Term
from trlearner.regularizer.regularizer import TRLearner
from trlearner.relations.similarity import head_relations
from trlearner.tasks.batch import TaskBatch

ROOM = 2_000_000
"""So many relations between two logged steps are kept for the history; of larger batches some are not."""
GROWTH = {"pictures": 1.1, "probe": 1.02}
"""Pictures take room in the files as well, so there are fewer of them as a run grows long."""
POINTS = 1_000
"""So many of the latest tasks are shown to the projector."""


@runtime_checkable
class Writer(Protocol):
    """What a monitor writes to: TensorBoard's `SummaryWriter`, or anything like it.

    Where it also has ``add_histogram``, ``add_text``, ``add_embedding`` or ``add_custom_scalars``, these are
    used as well.
    """

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """A point of a curve."""

    def add_image(self, tag: str, image: Any, step: int, dataformats: str) -> None:
        """A picture ``[height, width, 3]`` of bytes."""


class RelationMonitor:
    """Shows the relations between tasks, and what they do, while a learner trains.

    Attach it by ``reg.monitor = RelationMonitor(writer)``, or call it by hand after a step. Curves are
    written at every `every`-th step. Pictures and histograms, and what takes work to know (the cosine between
    the gradients of the two losses, and the drift of M) come as often as their share of the time allows.

    Args:
        writer: E.g. ``torch.utils.tensorboard.SummaryWriter("runs/mine")``.
        every: Steps between two points of a curve.
        names: How a task's id is written: a function of it, or a mapping.
        families: Which family a task's id belongs to, if that is known: a function, or a mapping. M is
            then compared with it, and the history is kept by families.
        similarity: How similar the tasks of these ids truly are, ``[tasks, tasks]``, if that is known.
        share: Of the time, for all of it; 1 sets no limit.

    Attributes:
        step: The number of the step that comes next; set it when you resume a run.
        history: What all steps so far saw of each pair of ids (or families).

    Example:
        >>> import torch
        >>> import trlearner as tr
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         if tag.startswith("trlearner.truth"):
        ...             print(tag)
        ...
        ...     def add_image(self, tag, image, step, dataformats): ...
        >>> reg = tr.TRLearner(encoder=tr.LabelledEncoder(None, dim=8))
        >>> reg.monitor = tr.RelationMonitor(Printer(), families=lambda id: id)
        >>> learner = tr.MAML(torch.nn.Linear(1, 1), lr=0.1, steps=2)
        >>> x = torch.rand(4, 10, 1)
        >>> y = x * torch.tensor([3.0, 3.0, -3.0, -3.0])[:, None, None]
        >>> ids = ["up", "up", "down", "down"]
        >>> out = reg(learner, tr.TaskBatch(support=(x, y), query=(x, y), ids=ids))
        trlearner.truth/purity
        trlearner.truth/rank_correlation
    """

    def __init__(
        self,
        writer: Writer,
        every: int = 100,
        names: Known[str] = str,
        families: Known[Hashable] | None = None,
        similarity: Callable[[Sequence[Hashable]], Any] | None = None,
        share: float = 0.02,
    ) -> None:
        if not isinstance(writer, Writer):
            raise TypeError(
                f"writer must have add_scalar and add_image, got {type(writer).__name__}. Use "
                "torch.utils.tensorboard.SummaryWriter(folder)."
            )
        check_whole("every", every)
        check_number("share", share, least=0, most=1)
        check_known("names", names)
        check_known("families", families)
        check_function("similarity", similarity, "(ids) -> [tasks, tasks]", optional=True)
        self.writer: Any = writer
        self.every = every
        self.step = 0
        self.history = History()
        self._knowledge = Knowledge(names, families, similarity)
        self._throttle = Throttle(share, GROWTH)
        self._kept: list[tuple[tuple[Hashable, ...], Tensor, Tensor]] = []
        # The tasks of the first probe, and M of them at the last.
        self._reference: tuple[TaskBatch, NDArray[Any]] | None = None
        self._begun = False
        self._project_next = 0

    def __call__(
        self,
        seen: Output | Term,
        regularizer: TRLearner,
        batch: TaskBatch,
        learner: Learner | None = None,
        own_loss: Callable[[], Tensor] | None = None,
    ) -> None:
        """Looks at a step; `TRLearner` calls it before the step's backward pass.

        Args:
            seen: What the step returned, or the ``term`` of collected tasks.
            regularizer: Whose step it was.
            batch: Its tasks; their ids are used.
            learner: Who adapted to them, for the drift of M.
            own_loss: Computes the learner's own loss again, for the cosine of the gradients.
        """
        self._keep(seen, batch)
        if self.step % self.every == 0:
            allowed = self._throttle.allowed()
            with self._throttle.spending(allowed):
                self._log(seen, regularizer, batch, learner, own_loss, allowed)
            self._kept.clear()
        self.step += 1

    def memory(self, answer: Recalled, step: int | None = None) -> None:
        """Shows which remembered models contribute to an answer of a `TaskMemory`.

        The picture has a row for each new task (the first 64) and a column for each of the 32 models that
        contribute most, with their coefficients; where there are several outputs, with the means over
        these. Curves show the share of remembered models, and how many contribute, effectively.

        Args:
            answer: What ``memory.adapt(support)`` returned.
            step: Where it stands in TensorBoard; by default `step`.
        """
        check_instance("answer", answer, Recalled, "Pass what memory.adapt(support) returned.")
        check_whole("step", step, least=0, optional=True)
        step = self.step if step is None else step
        weights = answer.weights.flatten(2).mean(2) if answer.weights.ndim > 2 else answer.weights
        found = fetch({"models": answer.models, "weights": weights})
        for tag, value in scalars.of_memory(found["weights"], answer.share).items():
            self.writer.add_scalar(tag, value, step)
        from trlearner.diagnostics.monitor import pictures  # with Pillow

        for tag, picture in pictures.of_memory(found["models"], found["weights"], step).items():
            self.writer.add_image(tag, picture, step, dataformats="HWC")

    def hparams(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """A run's settings beside its results, in this same run: TensorBoard's HParams page.

        Args:
            settings: What is no number, truth value or text is written as text.
            results: Curves of these names are made, if there are none.
        """
        write_hparams(self.writer, settings, results, self.step)

    def state_dict(self) -> dict[str, Any]:
        """The step and the history, to go on from."""
        return {"step": self.step, "history": self.history.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.step = state["step"]
        self.history.load_state_dict(state["history"])

    def _keep(self, seen: Output | Term, batch: TaskBatch) -> None:
        """M of a step for the history; of large batches only so many that they fit into `ROOM`."""
        m, embeddings = seen.relations, seen.embeddings
        if batch.ids is None or m is None or embeddings is None:
            return
        if self.step % (1 + self.every * m.numel() // ROOM) == 0:
            self._kept.append((batch.ids, m.detach(), embeddings.detach()))

    def _log(
        self,
        seen: Output | Term,
        regularizer: TRLearner,
        batch: TaskBatch,
        learner: Learner | None,
        own_loss: Callable[[], Tensor] | None,
        allowed: set[str],
    ) -> None:
        look = "pictures" in allowed
        project = look and hasattr(self.writer, "add_embedding") and self.step >= self._project_next
        wanted = _of_step(seen, regularizer) | {
            f"m{i}": m for i, (_, m, _) in enumerate(self._kept)
        }
        if project:
            wanted |= {f"e{i}": e for i, (_, _, e) in enumerate(self._kept)}
        if "probe" in allowed and learner is not None:
            wanted |= self._probe(seen, regularizer, batch, learner, own_loss)
        found = fetch(wanted)  # the only time that the device is waited for
        self._remember(found)
        if self._reference is not None and "reference_now" in found:
            found["reference_before"] = self._reference[1]
            self._reference = self._reference[0], found["reference_now"]
        elif "probe" in allowed and learner is not None and "relations" in found:
            self._reference = batch, found["relations"]
        know, curves = self._knowledge, scalars.of_step(found, regularizer.lam)
        if batch.ids is not None and "relations" in found:
            families, truth = know.families_of(batch.ids), know.truth(batch.ids)
            curves |= scalars.of_truth(found["relations"], families, truth)
        for tag, value in curves.items():
            self.writer.add_scalar(tag, value, self.step)
        self._log_sampler(regularizer)
        if look and "relations" in found:
            self._draw(found, batch)
        if project:
            self._project(found)
            self._project_next = max(1, 2 * self.step)
        if not self._begun:
            self._begin(regularizer, learner)

    def _probe(
        self,
        seen: Output | Term,
        regularizer: TRLearner,
        batch: TaskBatch,
        learner: Learner,
        own_loss: Callable[[], Tensor] | None,
    ) -> dict[str, Tensor]:
        """What takes work: the products of the gradients, and M of the tasks of the first probe."""
        wanted: dict[str, Tensor] = {}
        if own_loss is not None and seen.relations is not None and seen.loss.requires_grad:
            trained = [p for p in learner.parameters() if p.requires_grad]
            wanted |= products(seen.loss, own_loss(), regularizer.lam, trained)
        if self._reference is not None:
            wanted["reference_now"] = regularizer.relate(learner, self._reference[0])
        return wanted

    def _remember(self, found: Mapping[str, NDArray[Any]]) -> None:
        """Adds what was kept since the last point to the history."""
        full = self.history.full
        groups = {id: self._knowledge.group(id) for ids, _, _ in self._kept for id in set(ids)}
        for _, steps in groupby(range(len(self._kept)), lambda i: len(self._kept[i][0])):
            kept = list(steps)
            named = [[groups[id] for id in self._kept[i][0]] for i in kept]
            self.history.add(named, np.stack([found[f"m{i}"] for i in kept]))
        if self.history.full and not full:
            warn(
                f"more than {LIMIT} tasks have names of their own: the history of relations keeps the "
                "first. Pass families= to keep it by families."
            )

    def _draw(self, found: Mapping[str, NDArray[Any]], batch: TaskBatch) -> None:
        from trlearner.diagnostics.monitor import pictures  # with Pillow

        know, ids = self._knowledge, batch.ids or tuple(range(len(batch)))
        families = None if batch.ids is None else know.families_of(ids)
        names = [str(id) if batch.ids is None else know.name(id) for id in ids]
        drawn = pictures.of_step(found, names, families, self.step)
        if len(self.history.names) > 1:
            groups = [know.group_name(group) for group in self.history.names]
            drawn |= pictures.of_history(self.history, groups, self.step)
        for tag, picture in drawn.items():
            self.writer.add_image(tag, picture, self.step, dataformats="HWC")
        for tag, values in scalars.spreads(found).items():
            self._spread(tag, values)

    def _spread(self, tag: str, values: NDArray[Any]) -> None:
        """A histogram of what is finite, if anything is: TensorBoard refuses an empty one."""
        values = values[np.isfinite(values)]
        if values.size and hasattr(self.writer, "add_histogram"):
            self.writer.add_histogram(tag, values, self.step)

    def _project(self, found: Mapping[str, NDArray[Any]]) -> None:
        """The latest tasks as points, with names and families."""
        ids = [id for ids, _, _ in self._kept for id in ids][-POINTS:]
        if not ids:
            return
        points = np.concatenate([found[f"e{i}"] for i in range(len(self._kept))])[-POINTS:]
        know = self._knowledge
        labels = [[know.name(id), str(know.group(id))] for id in ids]
        self.writer.add_embedding(
            torch.from_numpy(points), labels, None, self.step, "tasks", ["name", "family"]
        )

    def _log_sampler(self, regularizer: TRLearner) -> None:
        sampler = getattr(regularizer, "sampler", None)
        if sampler is None:
            return
        for name, value in sampler.summary().items():
            tag = f"{scalars.GROUP}sampler/{name}"
            if value.ndim == 0:
                self.writer.add_scalar(tag, float(value), self.step)
            else:
                self._spread(tag, value.cpu().numpy())

    def _begin(self, regularizer: TRLearner, learner: Learner | None) -> None:
        """What is written once: the page of curves, and what is watched."""
        self._begun = True
        if hasattr(self.writer, "add_custom_scalars"):
            self.writer.add_custom_scalars(scalars.layout())
        if hasattr(self.writer, "add_text"):
            text = describe(regularizer, learner)
            self.writer.add_text(scalars.GROUP + "configuration", text, self.step)


def _of_step(seen: Output | Term, regularizer: TRLearner) -> dict[str, Tensor]:
    """What is read of every logged step."""
    wanted: dict[str, Tensor] = {}
    if isinstance(seen, Output):
        wanted["own"] = seen.task_loss
    if seen.relations is None or seen.weights is None or seen.embeddings is None:
        return wanted
    weight = regularizer.relation.weight.detach()
    wanted |= {
        "related": seen.relation_loss if isinstance(seen, Output) else seen.loss,
        "relations": seen.relations,
        "weights": seen.weights,
        "embeddings": seen.embeddings,
        "heads": head_relations(seen.embeddings.detach(), weight),
        "norms": weight.norm(dim=1),
    }
    if seen.alignment_confidence is not None:
        wanted["confidence"] = seen.alignment_confidence
    return wanted
