"""Relations between tasks, as pure functions of tensors."""
