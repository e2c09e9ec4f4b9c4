"""The facade: one method per use case. The command line is a thin layer over this class.

    from agent_swarm import Swarm

    with Swarm() as swarm:
        swarm.init_base("auto")
        swarm.create_project("web")
        swarm.create("web", "fix-1")
        result = swarm.run_captured("fix-1", ["make", "test"])

Methods block until their work is done, send events to `progress`, and raise SwarmErrors. One Swarm may be
used from several threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm import config as settings
from agent_swarm.events import Progress, ignore
from agent_swarm.model import Kind
from agent_swarm.operations.context import Context
from agent_swarm.operations.requests import ResourceRequest
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from agent_swarm.config import Config
    from agent_swarm.model import Baseline, Checkpoint, CheckpointId, Environment, Image
    from agent_swarm.operations.bulk import BulkResult
    from agent_swarm.operations.checkpoint import ListedCheckpoint
    from agent_swarm.operations.doctor import Finding, Garbage
    from agent_swarm.operations.quickstart import TaskShown
    from agent_swarm.operations.sessions import CapturedRun
    from agent_swarm.operations.status import Details, HostStatus, ProviderStatus
    from agent_swarm.operations.verify import Check

# Each method imports its operation: a command loads only what it uses (docs/performance.md).


class Swarm:
    """Projects and tasks of one state directory."""

    def __init__(
        self, *, paths: Paths | None = None, config: Config | None = None, progress: Progress = ignore
    ) -> None:
        """`paths` defaults to ~/.agent-swarm (or AGENT_SWARM_HOME), `config` to its config.json.

        Raises ConfigError for a bad config, SwarmError where the directory cannot be used.
        """
        self.paths = paths or Paths.from_environment()
        self.paths.prepare()
        self.config = config or settings.load(self.paths)
        self._context = Context(self.paths, self.config, progress)

    def __enter__(self) -> Swarm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._context.close()

    # --- images -----------------------------------------------------------------------------------

    def init_base(
        self, source: str | None = None, *, sha256: str | None = None, refresh: bool = False
    ) -> Image:
        """Download, build or convert a base image; an image that is there already is returned."""
        from agent_swarm.images.obtain import obtain

        return obtain(
            source or self.config.images.default,
            paths=self.paths,
            config=self.config,
            sha256=sha256,
            refresh=refresh,
            progress=self._context.progress,
        )

    def images(self) -> Sequence[Image]:
        """The base images, the newest first."""
        return self._context.images.list()

    # --- projects and tasks -----------------------------------------------------------------------

    def create_project(
        self,
        name: str,
        *,
        image: str | None = None,
        provider: str | None = None,
        request: ResourceRequest = ResourceRequest(),
        force: bool = False,
    ) -> Environment:
        """See operations/create.py."""
        from agent_swarm.operations.create import create_project

        return create_project(
            self._context, name, image=image, provider=provider, request=request, force=force
        )

    def create(
        self,
        project: str,
        name: str,
        *,
        request: ResourceRequest = ResourceRequest(),
        force: bool = False,
        cold: bool = False,
    ) -> Environment:
        """A running task cloned from the project's newest baseline. See operations/create.py."""
        from agent_swarm.operations.create import create_task

        return create_task(self._context, project, name, request=request, force=force, cold=cold)

    def bulk_create(
        self,
        project: str,
        names: Sequence[str],
        *,
        request: ResourceRequest = ResourceRequest(),
        force: bool = False,
        cold: bool = False,
        parallel: int | None = None,
    ) -> list[BulkResult]:
        """See operations/bulk.py."""
        from agent_swarm.operations.bulk import bulk_create

        return bulk_create(
            self._context, project, names, request=request, force=force, cold=cold, parallel=parallel
        )

    def start(
        self, name: str, *, kind: Kind = Kind.TASK, force: bool = False, cold: bool = False
    ) -> Environment:
        """See operations/start.py."""
        from agent_swarm.operations.start import start

        return start(self._context, kind, name, force=force, cold=cold)

    def stop(
        self, name: str, *, kind: Kind = Kind.TASK, force: bool = False, suspend: bool = False
    ) -> Environment:
        """Shut down, see operations/stop.py; with `suspend` its memory is kept, see operations/suspend.py."""
        if suspend:
            from agent_swarm.operations.suspend import suspend as save_memory

            return save_memory(self._context, kind, name, force=force)
        from agent_swarm.operations.stop import stop

        return stop(self._context, kind, name, force=force)

    def baseline(self, project: str) -> Baseline:
        """The project's next baseline generation, of its state as it is now."""
        from agent_swarm.operations.baseline import baseline

        return baseline(self._context, project)

    def delete(self, name: str, *, kind: Kind = Kind.TASK, force: bool = False) -> None:
        """See operations/delete.py."""
        from agent_swarm.operations.delete import delete

        delete(self._context, kind, name, force=force)

    def bulk_delete(
        self,
        names: Sequence[str] = (),
        *,
        project: str | None = None,
        force: bool = False,
        parallel: int | None = None,
    ) -> list[BulkResult]:
        """See operations/bulk.py."""
        from agent_swarm.operations.bulk import bulk_delete

        return bulk_delete(self._context, names, project=project, force=force, parallel=parallel)

    def find(self, name: str, *, kind: Kind = Kind.TASK) -> Environment:
        """The registry's record. Raises NotFoundError."""
        return self._context.registry.environment(kind, name)

    def environments(self, *, kind: Kind | None = None, project: str | None = None) -> list[Environment]:
        """Environments as they are now, projects first."""
        from agent_swarm.operations.listing import listing

        return listing(self._context, kind=kind, project=project)

    def show(self, name: str, *, kind: Kind = Kind.TASK) -> Details:
        from agent_swarm.operations.status import details

        return details(self._context, kind, name)

    # --- checkpoints and forks --------------------------------------------------------------------

    def checkpoint(self, task: str, name: str | None = None, *, disk_only: bool = False) -> Checkpoint:
        """A new checkpoint of the task as it is now. See operations/checkpoint.py."""
        from agent_swarm.operations.checkpoint import checkpoint

        return checkpoint(self._context, task, name, disk_only=disk_only)

    def checkpoints(self, task: str) -> Sequence[ListedCheckpoint]:
        """A task's checkpoints, the oldest first."""
        from agent_swarm.operations.checkpoint import checkpoints

        return checkpoints(self._context, task)

    def delete_checkpoint(self, task: str, name: str) -> None:
        """See operations/checkpoint.py."""
        from agent_swarm.operations.checkpoint import delete_checkpoint

        delete_checkpoint(self._context, task, name)

    def restore(
        self, task: str, name: str | None = None, *, force: bool = False, cold: bool = False
    ) -> Environment:
        """The task as it was at a checkpoint. See operations/restore.py."""
        from agent_swarm.operations.restore import restore

        return restore(self._context, task, name, force=force, cold=cold)

    def fork(
        self,
        source: str,
        names: Sequence[str],
        *,
        keep_secrets: bool = False,
        force: bool = False,
        parallel: int | None = None,
    ) -> list[BulkResult]:
        """New tasks from "TASK" or "TASK@CHECKPOINT". See operations/fork.py."""
        from agent_swarm.operations.fork import fork

        return fork(self._context, source, names, keep_secrets=keep_secrets, force=force, parallel=parallel)

    def checkpoint_names(self) -> dict[CheckpointId, str]:
        """The name of every task's checkpoints, by id."""
        return self._context.registry.checkpoint_names()

    def verify(self, name: str) -> list[Check]:
        """The evidence that a running task is a machine of its own. See operations/verify.py."""
        from agent_swarm.operations.verify import verify

        return verify(self._context, name)

    # --- sessions ---------------------------------------------------------------------------------

    def run(self, name: str, argv: Sequence[str], *, kind: Kind = Kind.TASK) -> int:
        """Run a command on our own streams; returns its exit code. See operations/sessions.py."""
        from agent_swarm.operations.sessions import run

        return run(self._context, kind, name, argv)

    def run_captured(
        self, name: str, argv: Sequence[str], *, kind: Kind = Kind.TASK, stdin: bytes = b""
    ) -> CapturedRun:
        """Run a command and return its output and exit code."""
        from agent_swarm.operations.sessions import run_captured

        return run_captured(self._context, kind, name, argv, stdin=stdin)

    def shell(self, name: str, *, kind: Kind = Kind.TASK) -> int:
        """An interactive shell; returns its exit code."""
        from agent_swarm.operations.sessions import shell

        return shell(self._context, kind, name)

    def code(self, name: str, *, kind: Kind = Kind.TASK, folder: str = "/home/worker") -> None:
        """Open the configured editor on the machine."""
        from agent_swarm.operations.sessions import code

        code(self._context, kind, name, folder=folder)

    def copy(self, source: str, destination: str) -> None:
        """Copy files between here and tasks, or between tasks: places are paths or NAME:PATH."""
        from agent_swarm.operations.sessions import copy_files

        copy_files(self._context, source, destination)

    # --- the house --------------------------------------------------------------------------------

    def status(self) -> HostStatus:
        """What the machines were promised, what they take, and what is left of the host."""
        from agent_swarm.operations.status import host_status

        return host_status(self._context)

    def providers(self) -> list[ProviderStatus]:
        """Every installed provider with what it can do, or what it lacks."""
        from agent_swarm.operations.status import provider_statuses

        return provider_statuses(self._context)

    def is_simulated(self, provider: str) -> bool:
        """Whether a provider's machines are not real ones; every listing marks those."""
        from agent_swarm.operations.listing import is_simulated

        return is_simulated(self._context, provider)

    def doctor(self) -> list[Finding]:
        """See operations/doctor.py."""
        from agent_swarm.operations.doctor import doctor

        return doctor(self._context)

    def gc(self, *, dry_run: bool = False) -> list[Garbage]:
        """Remove what nothing refers to, and return what that was."""
        from agent_swarm.operations.doctor import gc

        return gc(self._context, dry_run=dry_run)

    def quickstart(self, *, image: str | None = None) -> Sequence[TaskShown]:
        """See operations/quickstart.py."""
        from agent_swarm.operations.quickstart import quickstart

        return quickstart(self._context, image=image)
