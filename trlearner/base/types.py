"""Names shared by the whole package."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor
from typing_extensions import get_protocol_members

State = Mapping[str, Tensor]
"""Every parameter and buffer of a learner (and of a regularizer), by name."""

Fast = Mapping[str, Tensor]
"""What adaptation made of a task, by name; a learner's own business to read."""

LossFn = Callable[[Any, Any], Tensor]
"""``loss_fn(predictions [samples, ...], targets [samples, ...]) -> scalar mean``, for one task.

It is given what the model returns and the targets as they were given: tensors, or structures of tensors.
"""


class SeesParts(type(Protocol)):  # type: ignore[misc]
    """Makes ``isinstance(x, SomeProtocol)`` find what an `nn.Module` keeps among its parts.

    From Python 3.12 on, the check of a protocol does not look where ``__getattr__`` looks. A protocol with an
    attribute that may be a module needs ``metaclass=SeesParts``.
    """

    def __instancecheck__(cls, instance: Any) -> bool:
        """Whether the instance has everything that the protocol names."""
        return all(hasattr(instance, name) for name in get_protocol_members(cls))
