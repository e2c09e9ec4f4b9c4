"""The first minutes with agent-swarm: an image, a project, two tasks, a command in each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError, NotFoundError
from agent_swarm.events import Notice
from agent_swarm.images.obtain import obtain
from agent_swarm.model import Kind, Status
from agent_swarm.operations import observe, recovery
from agent_swarm.operations.bulk import bulk_create
from agent_swarm.operations.create import create_project
from agent_swarm.operations.requests import ResourceRequest
from agent_swarm.operations.sessions import CapturedRun, run_captured
from agent_swarm.operations.start import start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_swarm.model import Environment
    from agent_swarm.operations.context import Context

PROJECT = "demo"
TASKS = ("demo-1", "demo-2")
RESOURCES = ResourceRequest(cpus=2, memory_mib=1024, disk_gib=20)
COMMAND = ("sh", "-c", 'echo "$(hostname) runs $(uname -sr), alone: $(ls /home)"; cat /etc/machine-id')


@dataclass(frozen=True, slots=True)
class TaskShown:
    """A task of the tour, and what its command wrote."""

    environment: Environment
    run: CapturedRun


def quickstart(context: Context, *, image: str | None = None) -> Sequence[TaskShown]:
    """Make what is missing of image, project and tasks, and run a command in both tasks at the same time.

    What an earlier quickstart made is reused: a second run only starts what is stopped.
    """
    recovery.recover(context)
    if context.images.newest() is None or image is not None:
        obtain(
            image or context.config.images.default,
            paths=context.paths,
            config=context.config,
            progress=context.progress,
        )
    try:
        project = observe.observe(context, [context.registry.environment(Kind.PROJECT, PROJECT)])[0]
        context.progress(Notice(f"reusing project {PROJECT}"))
        if project.status is Status.FAILED:
            message = f"project {PROJECT} is there, but its set-up failed: {project.reason}"
            raise ConflictError(message, hint=f"Delete it: `agent-swarm project delete {PROJECT}`.")
    except NotFoundError:
        create_project(context, PROJECT, request=RESOURCES)
    known = {
        task.name: task for task in observe.observe(context, context.registry.environments(kind=Kind.TASK))
    }
    for result in bulk_create(
        context, PROJECT, [name for name in TASKS if name not in known], request=RESOURCES
    ):
        if result.error is not None:
            raise result.error
    for name in TASKS:
        if name in known and known[name].status is not Status.RUNNING:
            start(context, Kind.TASK, name)
    with ThreadPoolExecutor(max_workers=len(TASKS)) as pool:
        runs = list(pool.map(lambda name: run_captured(context, Kind.TASK, name, COMMAND), TASKS))
    return [
        TaskShown(context.registry.environment(Kind.TASK, name), run)
        for name, run in zip(TASKS, runs, strict=True)
    ]
