"""`python -m agent_swarm` is `agent-swarm`."""

from agent_swarm.cli.app import main

main()
