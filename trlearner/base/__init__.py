"""What everything else stands on: types, checks, warnings, and calls of modules as pure functions."""
