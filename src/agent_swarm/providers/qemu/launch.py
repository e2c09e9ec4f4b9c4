"""Starting a machine: network, QEMU, and the record of both."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent_swarm import processes
from agent_swarm.errors import MachineError
from agent_swarm.events import Notice
from agent_swarm.model import Firmware
from agent_swarm.providers.qemu import definition as definitions
from agent_swarm.providers.qemu import host, layout, network, process
from agent_swarm.providers.qemu.daemon import Daemon
from agent_swarm.providers.qemu.monitor import Monitor, NotListeningError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_swarm.events import Progress
    from agent_swarm.providers.qemu.definition import Launch, MachineDefinition
    from agent_swarm.providers.qemu.layout import MachineFiles

START_TIMEOUT_S = 60.0
PORT_ATTEMPTS = 5
POLL_S = 0.01


def start(
    files: MachineFiles,
    definition: MachineDefinition,
    *,
    qemu: host.Qemu,
    accelerator: str,
    network_kind: str,
    progress: Progress,
    paused: bool = False,
    memory: Path | None = None,
    then: Callable[[], None] = lambda: None,
) -> None:
    """Start QEMU and return when it runs the guest and answers on its control channel.

    With `memory`, the file of a saved memory, it does not run the guest but waits for the rest of its state, which
    `then` sees to. A running machine: nothing happens. Raises MachineError with QEMU's own words; then nothing is left running.
    """
    held = process.claim_or_find(files)
    if not isinstance(held, int):
        processes.save(files.process_record, held)
        return
    with ExitStack() as stack:
        stack.callback(os.close, held)
        process.forget(files)  # of a QEMU that was killed, or of before the host's reboot
        link = open_network(network_kind, definition.mac, files.passt_log)
        stack.callback(link.close)
        if link.name == "slirp":
            progress(Notice(network.SLIRP_WARNING))
        layout.write(
            files.runtime,
            layout.Runtime(ssh_port=link.ssh_port, accelerator=accelerator, network=link.name),
        )
        os.close(os.open(files.console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        launch = make_launch(
            files,
            definition,
            qemu=qemu,
            accelerator=accelerator,
            netdev=link.netdev,
            paused=paused or memory is not None,
            memory=memory,
        )
        daemon = Daemon(
            definitions.argv(definition, launch), log=files.qemu_log, pass_fds=[held, *link.descriptors]
        )
        undo = stack.enter_context(ExitStack())
        undo.callback(_give_up, files, daemon)
        with connected(files.qmp_socket, daemon):
            pass
        record = processes.describe(daemon.pid, files.marker)  # until it is saved the pid file serves
        if record is None:
            raise _failed(daemon)
        processes.save(files.process_record, record)
        link.check()
        then()
        undo.pop_all()  # from here on QEMU alone holds the lock and the network


def make_launch(
    files: MachineFiles,
    definition: MachineDefinition,
    *,
    qemu: host.Qemu,
    accelerator: str,
    netdev: str,
    paused: bool = False,
    memory: Path | None = None,
) -> Launch:
    """The start's part of the command line. Raises MachineError when a file that it needs is missing."""
    uefi = None
    if definition.firmware is Firmware.UEFI:
        uefi = host.find_uefi(definition.architecture, definition.machine)
    return definitions.Launch(
        binary=qemu.binary,
        accelerator=accelerator,
        netdev=netdev,
        disk=files.layer(definition.layer),
        seed=files.seed,
        console=files.console,
        qmp_socket=files.qmp_socket,
        agent_socket=files.agent_socket,
        pid_file=files.pid_file,
        kernel=boot_file(files, definition.kernel),
        initrd=boot_file(files, definition.initrd),
        uefi_code=uefi.code if uefi else None,
        uefi_variables=files.uefi_variables if uefi else None,
        sandbox=qemu.sandbox,
        paused=paused,
        memory=memory,
    )


def network_is_slirp(kind: str) -> bool:
    """Whether `open_network` will take slirp."""
    return kind == "slirp" or (kind == "auto" and host.find_passt() is None)


def open_network(kind: str, mac: str, log: Path) -> network.Slirp | network.Passt:
    """The machine's network: "passt", "slirp", or "auto", which is passt where it is installed."""
    binary = host.find_passt() if kind != "slirp" else None
    if kind == "passt" and binary is None:
        message = "passt is not installed"
        raise MachineError(message, hint=host.install_hint(["passt"]))
    if binary is None:
        return network.Slirp(ssh_port=network.free_port())
    for attempt in range(PORT_ATTEMPTS):
        port = network.free_port()
        try:
            return network.Passt(binary, ssh_port=port, mac=mac, log=log)
        except MachineError:
            if attempt == PORT_ATTEMPTS - 1 or network.is_free(port):  # the port was not what it failed for
                raise
    raise AssertionError


def boot_file(files: MachineFiles, relative: str | None) -> Path | None:
    """The image's kernel or initrd, None where it has none apart. Raises MachineError where it is missing."""
    if relative is None:
        return None
    path = Path(os.path.normpath(files.directory / relative))
    if not path.is_file():
        message = f"the base image's {path.name} is missing"
        raise MachineError(message, details=str(path), hint="Run `agent-swarm init-base` again.")
    return path


@contextmanager
def connected(qmp_socket: Path, daemon: Daemon) -> Iterator[Monitor]:
    """The control channel of a QEMU that was just started, as soon as it answers. Raises MachineError."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with ExitStack() as stack:
        while True:
            if daemon.ended(within_s=POLL_S) or time.monotonic() >= deadline:
                raise _failed(daemon)
            if not qmp_socket.exists():
                continue
            try:
                monitor = stack.enter_context(Monitor(qmp_socket, timeout_s=START_TIMEOUT_S))
                monitor.status()
            except NotListeningError:
                continue  # bound, but not listening yet
            except MachineError as error:
                if daemon.ended(within_s=1.0):
                    raise _failed(daemon) from error
                raise
            break
        yield monitor


def _failed(daemon: Daemon) -> MachineError:
    message = "QEMU could not start the machine"
    return MachineError(message, details=daemon.complaint(), hint="`agent-swarm doctor` checks the set-up.")


def _give_up(files: MachineFiles, daemon: Daemon) -> None:
    daemon.terminate()
    if not daemon.ended(within_s=10.0):
        daemon.terminate(force=True)
        daemon.ended(within_s=10.0)
    process.forget(files)
