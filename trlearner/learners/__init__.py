"""How one task is learned: MAML and its kin."""
