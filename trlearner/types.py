"""Names shared by the whole package."""

from collections.abc import Callable, Mapping

from torch import Tensor

State = Mapping[str, Tensor]
"""Every parameter and buffer of a learner (and of a regularizer), by name."""

Fast = Mapping[str, Tensor]
"""What adaptation made of a task, by name; a learner's own business to read."""

LossFn = Callable[[Tensor, Tensor], Tensor]
"""``loss_fn(predictions [samples, ...], targets [samples, ...]) -> scalar mean``, for one task."""
