"""Make a project from an image, or a task from a project's newest baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError, NotFoundError, UsageError
from agent_swarm.model import Environment, Image, Kind, Resources, Status, validate_name
from agent_swarm.operations import points, recovery, retention, setup
from agent_swarm.operations.baseline import capture_cold, capture_warm
from agent_swarm.operations.make import make, new
from agent_swarm.operations.requests import ResourceRequest
from agent_swarm.providers import discovery
from agent_swarm.providers.base import FromImage, FromPoint

if TYPE_CHECKING:
    from agent_swarm.operations.context import Context
    from agent_swarm.operations.journal import Change
    from agent_swarm.providers.base import Provider

GIB = 1024**3


def create_project(
    context: Context,
    name: str,
    *,
    image: str | None = None,
    provider: str | None = None,
    request: ResourceRequest = ResourceRequest(),
    force: bool = False,
) -> Environment:
    """A running project machine: booted, set up by setup.sh, with baseline generation 1.

    `image` is a name or digest of the image store, None for the newest. When setup.sh fails, SetupError is
    raised and the machine is left running, as FAILED, for inspection; every other failure leaves nothing.
    """
    validate_name(name, what="project name")
    recovery.recover(context)
    source = _image(context, image)
    chosen = discovery.choose(context.config, context.provider_context(), requested=provider)
    settings = context.config.resources
    resources = request.over(Resources(settings.cpus, settings.memory_mib, settings.disk_gib))
    _require_disk(resources, source.virtual_size_bytes, what=f"image {source.name}")
    script = setup.ensure_script(context.paths)
    environment = new(Kind.PROJECT, name, provider=chosen.name, image=source, resources=resources)

    def prepare(change: Change, machine: Provider, handle: str) -> None:
        with change.step("run setup.sh"):
            setup.run_setup(context, change.environment, script)
        with change.step("capture baseline"):
            if capture_warm(context, change.environment, machine, handle) is None:
                capture_cold(context, change.environment, machine, handle)

    return make(context, environment, FromImage(source), source, parent=None, then=prepare, force=force)


def create_task(
    context: Context,
    project_name: str,
    name: str,
    *,
    request: ResourceRequest = ResourceRequest(),
    force: bool = False,
    cold: bool = False,
) -> Environment:
    """A running task machine, cloned from the project's newest baseline. A running project is not touched.

    Where the baseline holds memory the task goes on from it, with the project's processes, unless `cold`, or
    something stands in the way: then it boots, and a Notice says why. On any failure nothing of the task is left.
    """
    validate_name(name, what="task name")
    recovery.recover(context)
    retention.tidy(context)
    project = context.registry.environment(Kind.PROJECT, project_name)
    baseline = context.registry.newest_baseline(project.id)
    if baseline is None or project.status is Status.DELETING:
        message = f"{project.label} is {project.status} and has no baseline to clone"
        raise ConflictError(
            message,
            hint=f"Repair it (`agent-swarm project ssh {project.name}`), then `project stop` makes a baseline.",
        )
    assert project.image is not None
    source = context.images.get(project.image)
    resources = request.over(project.resources)
    if resources.disk_gib < project.resources.disk_gib:
        message = f"a disk of {resources.disk_gib} GiB is smaller than that of {project.label}"
        raise UsageError(message, hint=f"Use --disk {project.resources.disk_gib} or more.")
    environment = new(
        Kind.TASK,
        name,
        provider=project.provider,
        image=source,
        resources=resources,
        parent=project,
        baseline=baseline.id,
    )
    warm = baseline.memory and not cold
    notice = ""
    if warm:
        provider = context.provider(project.provider)
        notice = points.boots_because(provider, baseline.handle, resources, what=environment.label)
    return make(
        context,
        environment,
        FromPoint(baseline.handle, source, memory=warm and not notice),
        source,
        parent=project,
        notice=notice,
        force=force,
    )


def _image(context: Context, reference: str | None) -> Image:
    if reference is not None:
        return context.images.find(reference)
    newest = context.images.newest()
    if newest is None:
        message = "there is no base image yet"
        raise NotFoundError(message, hint="Make one with `agent-swarm init-base`.")
    return newest


def _require_disk(resources: Resources, needed_bytes: int, *, what: str) -> None:
    if resources.disk_gib * GIB < needed_bytes:
        least = -(-needed_bytes // GIB)
        message = f"a disk of {resources.disk_gib} GiB is smaller than that of {what}"
        raise UsageError(message, hint=f"Use --disk {least} or more.")
