"""The reference: the same image, started by hand with QEMU, from the command to the first SSH session.

Nothing of agent-swarm but the seed and the key is used, so that what it adds to a boot shows.
"""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from agent_swarm.guest import cloudinit, keys
from agent_swarm.model import EnvironmentId

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_swarm.model import Image, Resources
    from agent_swarm.paths import Paths

TIMEOUT_S = 600.0
POLL_S = 0.2
IDENTIFIER = EnvironmentId("beefbeefbeef")


def measure(image: Image, resources: Resources, accelerator: str, paths: Paths, work: Path) -> float:
    """Seconds from QEMU's start to the end of a first `ssh ... true`. Raises TimeoutError."""
    work.mkdir()
    disk, seed = work / "disk.qcow2", work / "seed.iso"
    subprocess.run(
        [
            *("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image.disk),
            *(disk, f"{resources.disk_gib}G"),
        ],
        check=True,
    )
    cloudinit.write_iso(
        cloudinit.make_seed(
            environment=IDENTIFIER,
            host_name="plain",
            authorized_key=keys.ensure_client_key(paths),
            install_agent=False,
        ),
        seed,
    )
    port = _free_port()
    started = time.perf_counter()
    with _running(_argv(image, resources, accelerator, disk, seed, port), work / "console.log"):
        deadline = started + TIMEOUT_S
        while not (_greets(port) and _answers(paths, port, work)):
            if time.perf_counter() > deadline:
                message = f"the plain machine did not answer within {TIMEOUT_S:.0f} s"
                raise TimeoutError(message)
            time.sleep(POLL_S)
        return time.perf_counter() - started


def _argv(
    image: Image, resources: Resources, accelerator: str, disk: Path, seed: Path, port: int
) -> list[str]:
    intel = image.architecture == "x86_64"
    words = [
        f"qemu-system-{image.architecture}",
        *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
        *("-machine", "q35" if intel else "virt"),
        *("-accel", "tcg,thread=multi" if accelerator == "tcg" else accelerator),
        *("-cpu", "max" if accelerator == "tcg" else "host"),
        *("-smp", str(resources.cpus), "-m", str(resources.memory_mib)),
        *("-drive", f"if=virtio,format=qcow2,discard=unmap,file={disk}"),
        *("-drive", f"if=virtio,format=raw,read-only=on,file={seed}"),
        *("-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=n0", "-device", "virtio-rng-pci"),
    ]
    if image.kernel is not None:
        words += ["-kernel", str(image.kernel), "-append", image.kernel_command_line]
    if image.initrd is not None:
        words += ["-initrd", str(image.initrd)]
    return words


@contextmanager
def _running(argv: list[str], console: Path) -> Iterator[None]:
    with ExitStack() as stack:
        log = stack.enter_context(console.open("wb"))
        process = stack.enter_context(
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        )
        stack.callback(process.kill)
        yield
        if process.poll() is not None:
            message = f"QEMU ended by itself: {console.read_text(errors='replace')[-2000:]}"
            raise RuntimeError(message)


def _greets(port: int) -> bool:
    """Whether an SSH server shows its banner; cheaper for the guest than a whole attempt."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _answers(paths: Paths, port: int, work: Path) -> bool:
    done = subprocess.run(
        [
            *("ssh", "-F", "/dev/null", "-p", str(port), "-i", paths.ssh_key),
            *("-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "LogLevel=ERROR"),
            # nobody could tell us this machine's key beforehand; the product never connects like this
            *("-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={work / 'known_hosts'}"),
            *("worker@127.0.0.1", "true"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
