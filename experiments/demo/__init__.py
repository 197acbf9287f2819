"""MAML with and without TRLearner on sinusoids: ``python -m trlearner.experiments.demo``."""
