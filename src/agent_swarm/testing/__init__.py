"""For tests, ours and those of third parties: the contracts as suites that can be run."""
