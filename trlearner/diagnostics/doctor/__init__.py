"""Which layers of a model will not work in second-order meta-learning, and what to do about it."""
