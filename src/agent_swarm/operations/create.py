"""Make a project from an image, or a task from a project's newest baseline."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent_swarm import locks
from agent_swarm.errors import ConflictError, NotFoundError, SetupError, UsageError
from agent_swarm.guest import cloudinit, keys
from agent_swarm.model import (
    Baseline,
    Environment,
    Image,
    Kind,
    OperationKind,
    Resources,
    Status,
    validate_name,
)
from agent_swarm.operations import capacity, observe, recovery, setup
from agent_swarm.operations.boot import bring_up
from agent_swarm.operations.journal import Change
from agent_swarm.operations.requests import ResourceRequest
from agent_swarm.operations.stop import capture_baseline
from agent_swarm.providers import discovery
from agent_swarm.providers.base import FromImage, FromPoint, MachineSpec
from agent_swarm.registry.registry import new_environment_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_swarm.model import EnvironmentId
    from agent_swarm.operations.context import Context
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
    environment = _new(Kind.PROJECT, name, provider=chosen.name, image=source, resources=resources)

    def prepare(change: Change, machine: Provider, handle: str) -> None:
        with change.step("run setup.sh"):
            setup.run_setup(context, change.environment, script)
        with change.step("capture baseline"):
            capture_baseline(context, change.environment, machine, handle)

    return _make(context, environment, FromImage(source), source, parent=None, then=prepare, force=force)


def create_task(
    context: Context,
    project_name: str,
    name: str,
    *,
    request: ResourceRequest = ResourceRequest(),
    force: bool = False,
) -> Environment:
    """A running task machine, cloned from the project's newest baseline. A running project is not touched.

    On any failure nothing of the task is left.
    """
    validate_name(name, what="task name")
    recovery.recover(context)
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
    environment = _new(
        Kind.TASK,
        name,
        provider=project.provider,
        image=source,
        resources=resources,
        parent=project,
        baseline=baseline,
    )
    return _make(
        context,
        environment,
        FromPoint(baseline.handle, source),
        source,
        parent=project,
        then=None,
        force=force,
    )


def _make(
    context: Context,
    environment: Environment,
    source: FromImage | FromPoint,
    image: Image,
    *,
    parent: Environment | None,
    then: Callable[[Change, Provider, str], None] | None,
    force: bool,
) -> Environment:
    provider = context.provider(environment.provider)
    # a task has the agent from its project
    install_agent = environment.kind is Kind.PROJECT and not image.has_guest_agent
    seed = cloudinit.make_seed(
        environment=environment.id,
        host_name=environment.name,
        authorized_key=keys.ensure_client_key(context.paths),
        install_agent=install_agent,
    )
    spec = MachineSpec(
        id=environment.id,
        kind=environment.kind,
        host_name=environment.name,
        source=source,
        resources=environment.resources,
        seed=seed,
    )
    observe.observe(context, context.registry.environments())  # machines that died hold no memory

    def intend() -> None:
        if not force:
            capacity.require(
                capacity.measure(context),
                context.config.limits,
                environment.resources,
                what=environment.label,
            )
        if parent is not None:
            current = context.registry.by_id(parent.id)
            if current is None or current.status is Status.DELETING:
                message = f"{parent.label} was deleted meanwhile"
                raise NotFoundError(message)
        context.registry.insert(environment)

    # the id is new, so nobody else can hold this lock
    with (
        locks.hold(context.paths.lock(f"{environment.id}.change"), busy=f"{environment.label} is busy"),
        _no_files_without_record(context, environment.id),
        Change.begin(context, environment, OperationKind.CREATE, intend) as change,
    ):
        change.when_undone(lambda: context.registry.remove(environment.id))
        change.undo.callback(recovery.remove_machine, context, environment)
        with change.step("make machine"):
            handle = provider.create(spec, context.progress)
            context.registry.set_handle(environment.id, handle)
        bring_up(context, change, provider, handle, installs_agent=install_agent)
        if then is not None:
            try:
                then(change, provider, handle)
            except SetupError as error:
                reason = error.message
                change.failed(
                    error, lambda: context.registry.set_status(environment.id, Status.FAILED, reason=reason)
                )
                raise
        change.done(lambda: context.registry.set_status(environment.id, Status.RUNNING))
    made = context.registry.by_id(environment.id)
    assert made is not None
    return made


@contextlib.contextmanager
def _no_files_without_record(context: Context, environment: EnvironmentId) -> Iterator[None]:
    try:
        yield
    finally:
        if context.registry.by_id(environment) is None:
            recovery.forget_files(context, environment)


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


def _new(
    kind: Kind,
    name: str,
    *,
    provider: str,
    image: Image,
    resources: Resources,
    parent: Environment | None = None,
    baseline: Baseline | None = None,
) -> Environment:
    now = datetime.now(UTC)
    return Environment(
        id=new_environment_id(),
        kind=kind,
        name=name,
        provider=provider,
        handle="",
        image=image.digest,
        baseline_id=baseline.id if baseline else None,
        parent_id=parent.id if parent else None,
        resources=resources,
        status=Status.CREATING,
        endpoint=None,
        created_at=now,
        updated_at=now,
        started_at=None,
    )
