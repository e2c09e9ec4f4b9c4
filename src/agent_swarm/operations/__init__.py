"""What agent-swarm does: one use case a file, read from top to bottom.

`context` is what they all work with, `journal` makes a change crash-safe, `recovery` ends what a
killed command left open.
"""
