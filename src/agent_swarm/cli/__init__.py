"""The command line: a thin layer over `agent_swarm.swarm.Swarm`.

`app` is the entry point and the one place that prints errors and chooses exit codes; `table` names every
command and imports none; one module per group of commands; `render` and `progress` draw.
"""
