"""What `script/bench` runs: measurements against the budgets that docs/performance.md lists."""
