"""What runs have found: statistics, tables and plots."""
