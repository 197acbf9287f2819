"""One training run, and many at once: from a config to a folder of results."""
