"""Each library's loop with TRLearner, whole: ``python -m trlearner.integrations.examples.higher``."""
