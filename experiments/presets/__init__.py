"""What each problem is run with: only what differs from `Config`, with its source."""
