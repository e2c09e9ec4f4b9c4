"""QEMU as a provider: machines of this host, as processes of this user. Implements providers/base.py.

Each method reads as its steps; the work is in the modules beside: layout (files), definition (command line),
launch, boot, shutdown, capture, process (which QEMU is ours), accelerator, network, host. Modules that change
or start something are imported by the methods that use them: `list` needs none of them.
"""

from __future__ import annotations

import functools
import os
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from agent_swarm import files as filesystem
from agent_swarm import processes
from agent_swarm.errors import MachineError, SwarmError
from agent_swarm.model import EnvironmentId, Firmware, Kind, MachineState, MachineStatus, PointId
from agent_swarm.providers.base import FromPoint, OwnedMachine, Readiness
from agent_swarm.providers.qemu import definition, layout, process
from agent_swarm.providers.qemu.chain import Chain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent_swarm.events import Progress
    from agent_swarm.model import Endpoint
    from agent_swarm.providers.base import MachineSpec, Pricing, ProviderContext
    from agent_swarm.providers.qemu import host
    from agent_swarm.providers.qemu.definition import MachineDefinition
    from agent_swarm.providers.qemu.facets import Points, Suspension
    from agent_swarm.providers.qemu.layout import MachineFiles

GIB = 1 << 30


class QemuProvider:
    """The embedded default provider. Its machines' handles are "<kind>/<environment id>"."""

    name = "qemu"
    simulated = False
    pricing: Pricing | None = None

    def __init__(self, context: ProviderContext, environ: Mapping[str, str] = os.environ) -> None:
        self.paths = context.paths
        self.config = context.config
        self._installation = context.installation
        self._environ = environ
        self._chain = Chain()
        self._qemus: dict[str, host.Qemu] = {}

    @functools.cached_property
    def snapshots(self) -> Points:
        from agent_swarm.providers.qemu.facets import Points

        return Points(self)

    @property
    def live_fork(self) -> Points:
        return self.snapshots

    @functools.cached_property
    def suspend(self) -> Suspension:
        from agent_swarm.providers.qemu.facets import Suspension

        return Suspension(self)

    def probe(self) -> Readiness:
        from agent_swarm.providers.qemu import accelerator, host, launch, network

        architecture = definition.native_architecture()
        missing, needs, warnings = [], [], []
        try:
            qemu = self.qemu(architecture)
        except SwarmError as error:
            missing.append(error.message)
            needs.append(f"qemu-{architecture}")
        if not host.has_disk_tool():
            missing.append("qemu-img is not installed")
            needs.append("qemu-img")
        if launch.network_is_slirp(self.config.qemu.network):
            warnings.append(network.SLIRP_WARNING)
            if platform.system() == "Linux" and host.find_passt() is None:
                needs.append("passt")
        install = host.install_command(needs)
        if missing:
            return Readiness(
                usable=False,
                summary="QEMU cannot be used",
                missing=missing,
                install_command=install,
                warnings=warnings,
            )
        try:
            summary, notes = accelerator.outlook(self.paths, self.config, self._environ, qemu, architecture)
        except SwarmError as error:
            return Readiness(usable=False, summary=f"QEMU {qemu.version}", missing=[error.message])
        return Readiness(
            usable=True,
            summary=f"QEMU {qemu.version}, {summary}",
            install_command=install,
            warnings=[*warnings, *notes],
        )

    def create(self, spec: MachineSpec, progress: Progress) -> str:  # noqa: ARG002 - takes well under a second
        from agent_swarm.guest.cloudinit import write_iso
        from agent_swarm.images import qcow2
        from agent_swarm.providers.qemu import host, memory, storage

        files = layout.MachineFiles.of(self.paths, spec.kind, spec.id)
        if definition.load(files) is not None:
            return files.handle
        image = spec.source.image
        qemu = self.qemu(image.architecture)
        made = self._definition(files, spec, qemu)
        uefi = host.find_uefi(image.architecture, made.machine) if image.firmware is Firmware.UEFI else None
        backing, point = image.disk, None
        if isinstance(spec.source, FromPoint):
            backing, point = self._point(spec.source.handle)
        problem = self._chain.problem(backing)
        if problem:
            raise _broken(files, problem)
        with storage.changing(self.paths), ExitStack() as undo:
            self._remove(files)  # what an interrupted attempt left
            undo.callback(self._remove, files)
            self._tag(files)
            files.layers.mkdir(mode=0o700)
            qcow2.create_overlay(files.layer(1), backing=backing, size_bytes=spec.resources.disk_gib * GIB)
            write_iso(spec.seed, files.seed)
            if uefi is not None:
                inherited = point / files.uefi_variables.name if point and made.resume else uefi.variables
                filesystem.write_atomically(files.uefi_variables, inherited.read_bytes())
            if made.resume is not None:
                assert point is not None
                memory.link(point, files.saved)
            layout.write(files.definition, made)
            undo.pop_all()
        return files.handle

    def start(self, handle: str, progress: Progress) -> None:
        from agent_swarm.providers.qemu import capture, facets, launch, memory, resume

        files, machine = self.existing(handle)
        qemu = self.qemu(machine.architecture)
        machine = capture.settle(files, machine)
        if process.find(files) is None:
            self._refuse_broken(files, machine)
        saved, then = None, lambda: None
        if machine.resume is not None:
            problem = facets.obstacle(self, files, machine, files.saved, None)
            if problem:
                message = f"machine {handle} cannot go on where it was: {problem}"
                raise MachineError(message, hint="`agent-swarm start --cold` boots it from its disk instead.")
            resume.prepare(files, machine)
            saved, then = files.saved / memory.MEMORY, functools.partial(resume.go_on, files, machine)
        launch.start(
            files,
            machine,
            qemu=qemu,
            accelerator=self.accelerator(files, machine, qemu, progress),
            network_kind=self.config.qemu.network,
            progress=progress,
            memory=saved,
            then=then,
        )

    def endpoint(self, handle: str, *, timeout_s: float, progress: Progress) -> Endpoint:  # noqa: ARG002 - one wait
        from agent_swarm.providers.qemu import boot

        files, _ = self.existing(handle)
        return boot.wait_for_endpoint(files, timeout_s=timeout_s)

    def stop(self, handle: str, *, force: bool = False, timeout_s: float = 90.0) -> None:
        from agent_swarm.providers.qemu import shutdown

        files = layout.parse_handle(self.paths, handle)
        shutdown.stop(files, force=force, timeout_s=timeout_s)
        machine = definition.load(files)
        if machine is None or machine.resume is None:  # nothing maps it any more
            filesystem.remove_tree(files.saved)

    def delete(self, handle: str) -> None:
        from agent_swarm.providers.qemu import memory, storage

        files = layout.parse_handle(self.paths, handle)
        process.end(files)
        memory.discard(files)
        with storage.changing(self.paths):
            storage.remove(files, self._installation)

    def capture(self, handle: str, point: PointId, progress: Progress, *, memory: bool = False) -> str:
        from agent_swarm.providers.qemu import capture

        files, machine = self.existing(handle)
        if not files.point_record(point).exists():
            self._refuse_broken(files, machine)
            if memory:
                self.require_running(files)
            capture.capture(files, machine, point, progress, with_memory=memory)
        return layout.point_handle(files, point)

    def discard(self, handle: str, point: PointId) -> None:
        from agent_swarm.providers.qemu import storage

        self.settle(handle)  # a capture that was interrupted ends here, too
        files = layout.parse_handle(self.paths, handle)
        remains = files.points / f".{point}"
        with storage.changing(self.paths):
            filesystem.remove_tree(remains)
            if files.point(point).is_dir():
                files.point(point).rename(remains)
                filesystem.sync_directory(files.points)
                filesystem.remove_tree(remains)
            if files.layers.is_dir():
                storage.prune(files)

    def settle(self, handle: str) -> None:
        from agent_swarm.providers.qemu import capture

        files = layout.parse_handle(self.paths, handle)
        machine = definition.load(files)
        if machine is not None:
            capture.settle(files, machine)

    def inspect(self, handle: str) -> MachineStatus:
        try:
            files = layout.parse_handle(self.paths, handle)
            if not files.directory.is_dir() or files.kept.exists():
                return MachineStatus(MachineState.ABSENT)
            record = process.find(files)
            if record is not None:
                return MachineStatus(MachineState.RUNNING, pid=record.pid)
            machine = definition.load(files)
        except SwarmError as error:
            return MachineStatus(MachineState.BROKEN, reason=error.message)
        if machine is None:
            return MachineStatus(MachineState.BROKEN, reason="its creation was not finished")
        problem = self._problem(files, machine)
        if problem:
            return MachineStatus(MachineState.BROKEN, reason=problem)
        return MachineStatus(MachineState.STOPPED if machine.resume is None else MachineState.SUSPENDED)

    def usage(self, handle: str) -> MachineStatus:
        status = self.inspect(handle)
        if status.state is MachineState.ABSENT or handle.count("/") != 1:
            return status
        files = layout.parse_handle(self.paths, handle)
        return MachineStatus(
            state=status.state,
            reason=status.reason,
            pid=status.pid,
            memory_bytes=processes.memory_bytes(status.pid) if status.pid is not None else None,
            disk_bytes=filesystem.allocated_bytes(files.directory),
        )

    def console(self, handle: str) -> Path | None:
        files = layout.parse_handle(self.paths, handle)
        return files.console if files.console.exists() else None

    def list_owned(self) -> Iterator[OwnedMachine]:
        for kind in Kind:
            parent = layout.MachineFiles.of(self.paths, kind, EnvironmentId("any")).directory.parent
            found = (self._owned(kind, path) for path in (parent.iterdir() if parent.is_dir() else ()))
            for identifier in sorted({identifier for identifier in found if identifier is not None}):
                files = layout.MachineFiles.of(self.paths, kind, identifier)
                yield OwnedMachine(files.id, files.handle, _points(files), kept=files.kept.exists())

    def _owned(self, kind: Kind, directory: Path) -> EnvironmentId | None:
        """The id of the machine of ours that a directory, or the remains of one, belongs to."""
        if not directory.is_dir():
            return None
        remains = layout.parse_remains(directory.name)
        if remains is not None:
            return remains[0] if remains[1] == self._installation else None
        files = layout.MachineFiles.of(self.paths, kind, EnvironmentId(directory.name))
        try:
            owner = layout.read(files.owner, layout.Owner)
        except MachineError:
            return files.id  # the tag is damaged, but this is our state directory
        return files.id if owner is not None and owner.installation == self._installation else None

    def _tag(self, files: MachineFiles) -> None:
        """Make the machine's directory; it appears with its tag in it, or not at all."""
        remains = files.remains(self._installation)
        filesystem.remove_tree(remains)
        remains.mkdir(mode=0o700, parents=True)
        owner = layout.Owner(installation=self._installation, environment=files.id, kind=files.kind)
        layout.write(remains / files.owner.name, owner)
        remains.rename(files.directory)
        filesystem.sync_directory(files.directory.parent)

    def _remove(self, files: MachineFiles) -> None:
        """Remove the machine's files; what an interruption leaves carries the tag in its name."""
        remains = files.remains(self._installation)
        filesystem.remove_tree(remains)
        if files.directory.is_dir():
            files.directory.rename(remains)
            filesystem.remove_tree(remains)

    def qemu(self, architecture: str) -> host.Qemu:
        from agent_swarm.providers.qemu import host

        if architecture not in self._qemus:
            self._qemus[architecture] = host.find_qemu(architecture)
        return self._qemus[architecture]

    def existing(self, handle: str) -> tuple[MachineFiles, MachineDefinition]:
        files = layout.parse_handle(self.paths, handle)
        machine = definition.load(files)
        if machine is None:
            message = f"there is no machine {handle}"
            raise MachineError(message, hint="`agent-swarm doctor` compares the registry with what is there.")
        return files, machine

    def _point(self, handle: str) -> tuple[Path, Path]:
        """The layer and the directory of a point. Raises MachineError where it is gone."""
        files, point = layout.parse_point_handle(self.paths, handle)
        record = layout.read(files.point_record(point), layout.PointRecord)
        if record is None:
            message = f"the point {handle} is gone"
            raise MachineError(message, hint="Make a new baseline with `agent-swarm project stop`.")
        return files.layer(record.layer), files.point(point)

    def _definition(self, files: MachineFiles, spec: MachineSpec, qemu: host.Qemu) -> MachineDefinition:
        """What a new machine is: its spec's, or exactly what the memory was saved from, where it starts from that."""
        from agent_swarm.providers.qemu import host, memory

        image, resume, saved = spec.source.image, None, None
        if isinstance(spec.source, FromPoint) and spec.source.memory:
            found = memory.load_record(self._point(spec.source.handle)[1])
            if found is None:
                message = f"the point {spec.source.handle} has no memory"
                raise MachineError(message)
            problem = self.live_fork.obstacle(spec.source.handle, spec.resources)
            if problem:
                message = f"a machine cannot go on from {spec.source.handle}: {problem}"
                raise MachineError(message, hint="Without its memory it can boot from its disk.")
            saved = found.machine
            resume = definition.Resume(own=False, keep_secrets=spec.source.keep_secrets)
        return definition.MachineDefinition(
            version=layout.FORMAT_VERSION,
            id=spec.id,
            architecture=image.architecture,
            machine=saved.machine if saved else host.machine_type(qemu, image.architecture),
            cpus=spec.resources.cpus,
            memory_mib=spec.resources.memory_mib,
            mac=saved.mac if saved else definition.mac_address(spec.id),
            uuid=definition.machine_uuid(spec.id),
            firmware=image.firmware,
            image=image.digest,
            kernel=_relative(files, image.kernel),
            initrd=_relative(files, image.initrd),
            kernel_command_line=image.kernel_command_line,
            layer=1,
            host_name=spec.host_name,
            resume=resume,
        )

    def require_running(self, files: MachineFiles) -> None:
        if process.find(files) is None:
            message = f"machine {files.handle} does not run: it has no memory to save"
            raise MachineError(message, hint="Start it first.")

    def _problem(self, files: MachineFiles, machine: MachineDefinition) -> str:
        for relative in (machine.kernel, machine.initrd):
            if relative is not None and not os.path.exists(f"{files.directory}/{relative}"):  # noqa: PTH110 - see Chain
                return f"the base image's {Path(relative).name} is missing"
        return self._chain.problem(files.layer(machine.layer))

    def _refuse_broken(self, files: MachineFiles, machine: MachineDefinition) -> None:
        problem = self._problem(files, machine)
        if problem:
            raise _broken(files, problem)

    def accelerator(
        self, files: MachineFiles, machine: MachineDefinition, qemu: host.Qemu, progress: Progress
    ) -> str:
        from agent_swarm.providers.qemu import accelerator, host

        uefi = None
        if machine.firmware is Firmware.UEFI:
            uefi = host.find_uefi(machine.architecture, machine.machine)
        subject = accelerator.Subject(
            image=machine.image,
            architecture=machine.architecture,
            machine=machine.machine,
            kernel=files.directory / machine.kernel if machine.kernel else None,
            disk=files.layer(machine.layer),
            firmware_options=accelerator.trial_firmware(uefi.code, files.uefi_variables) if uefi else (),
        )
        return accelerator.choose(self.paths, self.config, self._environ, qemu, subject, progress)


def _relative(files: MachineFiles, path: Path | None) -> str | None:
    return None if path is None else os.path.relpath(path, files.directory)


def _points(files: MachineFiles) -> list[PointId]:
    from agent_swarm.providers.qemu import storage

    return storage.points(files)


def _broken(files: MachineFiles, problem: str) -> MachineError:
    message = f"machine {files.handle} is broken: {problem}"
    return MachineError(message, hint="Restore the file, or delete the machine and make it again.")
