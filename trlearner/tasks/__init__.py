"""Tasks: their samples, batches, targets and losses."""
