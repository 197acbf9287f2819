"""How fast is a meta-step, ours and our peers'? ``python -m trlearner.experiments.bench`` tells."""
