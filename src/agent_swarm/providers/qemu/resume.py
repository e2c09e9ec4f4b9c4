"""Going on from saved memory: the second half of a start, while QEMU stands still with the memory mapped.

    1. the devices' state is loaded, the guest runs
    2. the hygiene contract (providers/base.py) is kept, through the guest agent
    3. machine.json says that the memory is used: from here on the machine is a running one

Killed or failed before 3, the machine is as it was: suspended, its memory unused, since the layer that it wrote to
meanwhile is made anew at the next start (`prepare`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from agent_swarm.errors import MachineError
from agent_swarm.guest import identity
from agent_swarm.guest.agent import GuestAgent
from agent_swarm.images import qcow2
from agent_swarm.providers.qemu import layout, memory
from agent_swarm.providers.qemu.chain import read_backing
from agent_swarm.providers.qemu.daemon import tail
from agent_swarm.providers.qemu.monitor import Monitor

if TYPE_CHECKING:
    from agent_swarm.providers.qemu.definition import MachineDefinition
    from agent_swarm.providers.qemu.layout import MachineFiles

LOAD_TIMEOUT_S = 120.0
AGENT_TIMEOUT_S = 60.0
POLL_S = 0.003
LATE = "it was not loaded in time"


def prepare(files: MachineFiles, machine: MachineDefinition) -> None:
    """Have the active layer empty: an earlier start that was interrupted may have written to it."""
    if machine.resume is None or not files.runtime.exists():
        return
    layer = files.layer(machine.layer)
    backing = read_backing(layer)
    assert backing is not None, "the active layer of a suspended machine builds on the saved one"
    size = qcow2.info(layer).virtual_size_bytes
    fresh = layer.with_name(f".{layer.stem}.fresh")
    fresh.unlink(missing_ok=True)
    qcow2.create_overlay(fresh, backing=layer.parent / backing, size_bytes=size)
    fresh.rename(layer)
    files.runtime.unlink()


def go_on(files: MachineFiles, machine: MachineDefinition) -> None:
    """From a QEMU that was started with `memory` to a running machine that is itself. Raises MachineError."""
    assert machine.resume is not None
    try:
        _load(files)
    except MachineError as error:
        said = tail(files.qemu_log) or error.details or error.message
        message = "QEMU could not load the machine's saved memory"
        raise MachineError(
            message, details=said, hint="With `--cold` it boots from its disk instead."
        ) from error
    with GuestAgent(files.agent_socket) as agent:
        if not agent.ping(timeout_s=AGENT_TIMEOUT_S):
            message = "the guest agent does not answer after the memory was loaded"
            raise MachineError(message, hint="Without it the machine cannot be given an identity of its own.")
        if machine.resume.own:
            identity.refresh(agent, machine.architecture)
        else:
            renewed = identity.renew(
                agent,
                machine.architecture,
                environment=machine.id,
                host_name=machine.host_name,
                keep_secrets=machine.resume.keep_secrets,
                scratch=files.directory,
            )
            runtime = layout.read(files.runtime, layout.Runtime)
            assert runtime is not None, "launch.start has written it"
            layout.write(files.runtime, msgspec.structs.replace(runtime, host_key=renewed.host_key))
    layout.write(files.definition, msgspec.structs.replace(machine, resume=None))


def _load(files: MachineFiles) -> None:
    with Monitor(files.qmp_socket) as monitor:
        monitor.read_state(files.saved / memory.STATE)
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while monitor.status() == "inmigrate":
            if time.monotonic() >= deadline:
                raise MachineError(LATE)
            time.sleep(POLL_S)
        status, why = monitor.migration()
        if status == "failed":
            raise MachineError(why)
        monitor.resume()
