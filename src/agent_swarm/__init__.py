"""A full Linux machine of its own for every coding agent's task."""

__version__ = "0.1.0"
