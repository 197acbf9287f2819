"""One forward of a model, every module's calls kept, so that each can be tried alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map

from trlearner.diagnostics.doctor.held import rebuilt, tensors_held, unchained

Signature = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Call:
    """What a module was given and what it returned.

    Attributes:
        leaves: Its arguments, flattened; tensors as they were before the call. Behind them, the tensors that
            arguments of other kinds hold.
        spec: How to put them together again.
        learned: For each tensor among the leaves, whether it carried a gradient.
        own: For each tensor among them, whether it differs from task to task.
        output: What it returned.
    """

    leaves: list[Any]
    spec: TreeSpec
    learned: list[bool]
    own: list[bool]
    output: Any


@dataclass(eq=False)
class Node:
    """A module (or, at the root, the whole meta-step) and those that it called."""

    name: str
    module: nn.Module | None
    children: list[Node] = field(default_factory=list)
    calls: dict[Signature, Call] = field(default_factory=dict)  # one for each shape of inputs
    adapts: bool = False  # whether it ran in the adapted model rather than before adaptation
    overwrites: bool = False  # whether it wrote into its inputs
    complete: bool = False  # whether some call of it came to its end


@dataclass(frozen=True)
class Write:
    """An in-place write into what is not the writer's own: `what` is a kind, `name` a tensor's."""

    node: Node
    what: str
    name: str


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def signature(leaves: list[Any]) -> Signature:
    """The shapes of the tensors among `leaves`."""
    return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))


@contextmanager
def replaced(others: Mapping[nn.Module, Mapping[str, Any]]) -> Iterator[None]:
    """Modules with other attributes (their forward, say), for a while."""
    before = [(vars(m), name, vars(m).get(name)) for m in others for name in others[m]]
    try:
        for module, attributes in others.items():
            vars(module).update(attributes)
        yield
    finally:
        for own, name, old in before:
            if old is None:
                own.pop(name, None)
            else:
                own[name] = old


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Whatever happens, the model's modules have their own tensors afterwards.

    ``torch.func.functional_call`` leaves those of a module with two names replaced.
    """
    held = [part for m in model.modules() for part in (m._parameters, m._buffers)]
    before: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (part, dict(part)) for part in held if isinstance(part, dict)
    ]
    try:
        yield
    finally:
        for part, own in before:
            part.update(own)


class Recorder:
    """Keeps who called whom with what while the context `recording` lasts.

    Args:
        names: The modules to record, and what they are called.
        data: The user's tensors and what they are, to see who writes into them.
    """

    def __init__(self, names: Mapping[nn.Module, str], data: Sequence[tuple[str, Tensor]]) -> None:
        self.root = Node("(meta-step)", None)
        self.nodes = {m: Node(name, m) for m, name in names.items()}
        self.writes: list[Write] = []
        self.failed: tuple[Node, Exception] | None = None
        self.adapting = False
        self._data = {_storage(t): name for name, t in data}
        self._stack: list[tuple[Node, set[int]]] = [(self.root, set())]
        self._lineage = _Lineage([t for _, t in data])

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Everything that is called inside is kept."""
        forwards = {
            m: {"forward": functools.partial(self._run, node, m.forward)}
            for m, node in self.nodes.items()
        }
        # What torch.compile meets under these modes, it never compiles again.
        eager = torch.compiler.set_stance("force_eager")
        with eager, replaced(forwards), self._lineage, _Writes(self._wrote):
            yield
        self._lineage.forget()

    def _run(self, node: Node, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        module, parent = node.module, self._stack[-1][0]
        assert module is not None
        if node not in parent.children and node not in [n for n, _ in self._stack]:
            parent.children.append(node)
        given = tensors_in((args, kwargs))
        leaves, spec = tree_flatten((args, kwargs))
        hidden = [t for leaf in leaves if not isinstance(leaf, Tensor) for t in tensors_held(leaf)]
        inputs = [t for t in (*leaves, *hidden) if isinstance(t, Tensor)]
        learned = [t.requires_grad for t in inputs]
        own = [self._lineage.knows(t) for t in inputs]
        copies = {id(t): t.detach().clone() for t in hidden}
        leaves = [
            t.detach().clone() if isinstance(t, Tensor) else rebuilt(t, copies) for t in leaves
        ]
        shapes = signature(leaves)
        leaves += [copies[id(t)] for t in hidden]
        buffers = dict(module._buffers)
        self._stack.append((node, {_storage(t) for t in given}))
        try:
            output = forward(*args, **kwargs)
        except Exception as error:
            if self.failed is None or self.failed[1] is not error:
                self.failed = node, error
            raise
        finally:
            self._stack.pop()
        for name, value in module._buffers.items():
            if value is not buffers.get(name):
                self._note(Write(node, "buffer", name))
        kept = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else unchained(t), output)
        node.calls.setdefault(shapes, Call(leaves, spec, learned, own, kept))
        node.adapts |= self.adapting
        node.complete = True
        return output

    def _wrote(self, tensor: Tensor) -> None:
        storage, (node, given) = _storage(tensor), self._stack[-1]
        if storage in self._data:
            self._note(Write(node, self._data[storage], ""))
        for module, owner in self.nodes.items():
            for what, held in (("parameter", module._parameters), ("buffer", module._buffers)):
                for name, value in held.items():
                    if value is not None and _storage(value) == storage:
                        self._note(Write(owner, what, name))
        node.overwrites |= storage in given

    def _note(self, write: Write) -> None:
        if write not in self.writes:
            self.writes.append(write)


class _Lineage(TorchFunctionMode):
    """Knows which tensors were computed from the tasks' data or from what adapts."""

    def __init__(self, data: list[Tensor]) -> None:
        super().__init__()
        self._known = {id(t): t for t in data}  # the tensors themselves, for ids are used again

    def knows(self, tensor: Tensor) -> bool:
        return tensor.requires_grad or id(tensor) in self._known

    def forget(self) -> None:
        """Lets go of what it knows."""
        self._known.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if any(self.knows(t) for t in tensors_in((args, kwargs))):
            self._known.update((id(t), t) for t in tensors_in(output))
        return output


class _Writes(TorchDispatchMode):
    """Tells of every tensor that an operator writes into."""

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        for i, argument in enumerate(schema.arguments if schema is not None else ()):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                for tensor in tensors_in(value):
                    self._tell(tensor)
        return func(*args, **kwargs)


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # a sparse tensor has none
        return id(tensor)
