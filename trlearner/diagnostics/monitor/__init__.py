"""Watching relations while a learner trains."""
