"""A differential fuzzer: random models, learners, options and tasks; engines must agree on each."""
