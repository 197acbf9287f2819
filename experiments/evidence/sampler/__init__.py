"""Whether the task sampler finds what was planted, and what it costs."""
