"""What runs guest code: the processor (KVM, HVF, WHPX) or QEMU's emulator (TCG).

Probed, not assumed: /dev/kvm can exist, open and create a virtual machine, and guests hang in it all the
same. So the image's kernel is started once under each candidate, and must get through its early boot.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent_swarm import locks, runner
from agent_swarm.errors import CommandError, UsageError
from agent_swarm.events import Notice
from agent_swarm.files import write_atomically
from agent_swarm.providers.qemu import console
from agent_swarm.providers.qemu.definition import escaped, native_architecture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_swarm.config import Config
    from agent_swarm.events import Progress
    from agent_swarm.model import ImageDigest
    from agent_swarm.paths import Paths
    from agent_swarm.providers.qemu.host import Qemu

_SLOW = "TCG (software emulation)"
NAMES = ("kvm", "hvf", "whpx", "tcg")
OVERRIDE = "AGENT_SWARM_ACCEL"
KERNEL_LIMIT_S = 20.0
FIRMWARE_LIMIT_S = 60.0
KVM_DEVICE = Path("/dev/kvm")

# a kernel without a root disk: its last words after all of early boot
_NO_ROOT = re.compile(r"Unable to mount root fs|Cannot open root device")
# a whole disk: the kernel has handed over to the first program
_HANDED_OVER = re.compile(r"Run /\S+ as init process|systemd\[1\]|Freeing unused kernel|login:")
# QEMU stops a guest whose instruction KVM could not execute, and stays
_STOPPED = re.compile(r"KVM internal error.*")


class Verdict(msgspec.Struct, frozen=True):
    works: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a probe boots: a kernel by itself, or, where the image has none apart, its disk (not written to)."""

    image: ImageDigest
    architecture: str
    machine: str
    kernel: Path | None
    disk: Path
    firmware_options: tuple[str, ...] = ()


def wanted(config: Config, environ: Mapping[str, str]) -> str:
    """The accelerator that the user asked for, or "auto". Raises UsageError for an unknown one."""
    given = environ.get(OVERRIDE, "") or config.qemu.accelerator
    if given != "auto" and given not in NAMES:
        message = f"{OVERRIDE}={given} is not an accelerator"
        raise UsageError(message, hint=f"Use auto, {', '.join(NAMES)}.")
    return given


def candidate(architecture: str, system: str = sys.platform) -> str:
    """The host's hardware accelerator for guests of this architecture, "tcg" where it can have none."""
    if architecture != native_architecture():
        return "tcg"
    return {"linux": "kvm", "darwin": "hvf", "win32": "whpx"}.get(system, "tcg")


def obstacle(name: str) -> str:
    """Why an accelerator cannot even be tried now, "" where it can."""
    if name != "kvm":
        return ""
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"{KVM_DEVICE} does not exist: the processor's virtualisation is off, or this is a virtual machine"
    except PermissionError:
        return f"{KVM_DEVICE} may not be opened: add the user to the group kvm"
    except OSError as error:
        return f"{KVM_DEVICE} cannot be opened: {error.strerror}"
    return ""


def choose(
    paths: Paths, config: Config, environ: Mapping[str, str], qemu: Qemu, subject: Subject, progress: Progress
) -> str:
    """The accelerator to start a machine with. The first time for an image this boots its kernel.

    A fallback is told as a Notice when it is found out. Two callers at once probe once.
    """
    asked = wanted(config, environ)
    if asked != "auto":
        return asked
    name = candidate(subject.architecture)
    if name == "tcg":
        return name
    reason = obstacle(name)
    if not reason:
        busy = "another command still tries the accelerator"
        with locks.hold(paths.lock("accelerators"), wait_s=2 * FIRMWARE_LIMIT_S, busy=busy):
            verdicts = load(paths)
            key = _key(name, qemu, subject.image)
            if key not in verdicts:
                progress(Notice(f"trying {name.upper()} with this image for the first time"))
                verdicts = {**verdicts, key: try_out(name, qemu, subject)}
                write_atomically(paths.accelerators, msgspec.json.format(msgspec.json.encode(verdicts)))
                reason = verdicts[key].reason
            if verdicts[key].works:
                return name
    if reason:  # what an earlier trial found is not said at every start: `providers` and `doctor` do
        progress(Notice(f"{name.upper()} is not used, software emulation (TCG) is: {reason}"))
    return "tcg"


def known(paths: Paths, qemu: Qemu, name: str) -> Verdict | None:
    """What a probe with some image found on this host kernel and QEMU; None where there was none."""
    prefix = _key(name, qemu, None)
    found = [verdict for key, verdict in load(paths).items() if key.startswith(prefix)]
    return next((verdict for verdict in found if verdict.works), found[0] if found else None)


def load(paths: Paths) -> dict[str, Verdict]:
    """All verdicts; none where the file cannot be read: they can be had again."""
    try:
        return msgspec.json.decode(paths.accelerators.read_bytes(), type=dict[str, Verdict])
    except (OSError, msgspec.DecodeError):
        return {}


def try_out(name: str, qemu: Qemu, subject: Subject, *, limit_s: float | None = None) -> Verdict:
    """Boot the subject under the accelerator and see how far it comes. Blocks up to the limit."""
    if limit_s is None:
        limit_s = KERNEL_LIMIT_S if subject.kernel else FIRMWARE_LIMIT_S
    success = _NO_ROOT if subject.kernel else _HANDED_OVER
    words = probe_argv(name, qemu, subject)
    guard = shutil.which("timeout")  # ends the guest even where we are killed
    if guard is None:
        return _try_to_the_end(words, limit_s, success)
    lines: list[str] = []

    def look(line: str) -> None:
        lines.append(line)
        if success.search(line):
            raise _DecidedError(Verdict(works=True))
        if stopped := _STOPPED.search(line):
            raise _DecidedError(Verdict(works=False, reason=f"a trial guest was stopped by a {stopped[0]}"))

    try:
        runner.stream([guard, "--signal=KILL", f"{limit_s}", *words, "-serial", "stdio"], on_line=look)
    except _DecidedError as decided:
        return decided.verdict
    except CommandError as error:
        if error.returncode in (124, 137, -9):
            return _hang(lines, limit_s)
        return Verdict(works=False, reason=_last(lines) or error.message)
    return Verdict(works=False, reason=f"the guest ended early: {_last(lines)}")


def probe_argv(name: str, qemu: Qemu, subject: Subject) -> list[str]:
    """The command line of a trial boot, without its serial port. Pure."""
    port = "ttyAMA0" if subject.architecture == "aarch64" else "ttyS0"
    words = [qemu.binary, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]
    words += ["-machine", subject.machine, "-accel", name, "-cpu", "host", "-smp", "2", "-m", "512"]
    if subject.kernel is not None:
        words += ["-kernel", os.fspath(subject.kernel), "-append", f"console={port} panic=-1"]
    else:
        words += [*subject.firmware_options]
        words += ["-drive", f"if=virtio,format=qcow2,snapshot=on,file={escaped(subject.disk)}"]
    return words


def trial_firmware(code: Path, variables: Path) -> tuple[str, ...]:
    """A subject's options for UEFI; the variables are not written to."""
    return (
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={escaped(code)}"),
        *("-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={escaped(variables)}"),
    )


class _DecidedError(Exception):
    """A line told all; ends the trial."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


def _try_to_the_end(words: list[str], limit_s: float, success: re.Pattern[str]) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="agent-swarm-probe-") as scratch:
        output = Path(scratch, "console")
        try:
            done = runner.run([*words, "-serial", f"file:{escaped(output)}"], timeout_s=limit_s, check=False)
            complaint = done.stderr.decode("utf-8", "replace")
        except CommandError:
            complaint = ""
        text = output.read_text("utf-8", "replace") if output.exists() else ""
    if success.search(text):
        return Verdict(works=True)
    if complaint:
        return Verdict(works=False, reason=_last(complaint.splitlines()))
    return _hang(text.splitlines(), limit_s)


def _hang(lines: list[str], limit_s: float) -> Verdict:
    last = _last(lines)
    seen = f"; its last line: {last}" if last else "; it wrote nothing"
    return Verdict(works=False, reason=f"a trial guest did not get through its boot in {limit_s:.0f} s{seen}")


def _last(lines: list[str]) -> str:
    shown = (console.printable(line).strip() for line in reversed(lines))
    return next((line[:160] for line in shown if line), "")


def _key(name: str, qemu: Qemu, image: ImageDigest | None) -> str:
    return f"{name} {platform.release()} {qemu.version} {image or ''}"


def outlook(
    paths: Paths, config: Config, environ: Mapping[str, str], qemu: Qemu, architecture: str
) -> tuple[str, list[str]]:
    """What `choose` will come to, as a phrase, and warnings; from what is known, without a trial."""
    asked = wanted(config, environ)
    name = candidate(architecture) if asked == "auto" else asked
    if name == "tcg":
        return _SLOW, []
    reason = obstacle(name)
    verdict = known(paths, qemu, name)
    if not reason and verdict is not None and not verdict.works:
        reason = verdict.reason
    if reason and asked == "auto":
        return _SLOW, [f"{name.upper()} cannot be used: {reason}"]
    if reason:
        return name.upper(), [f"{name.upper()} was asked for, but {reason}"]
    if verdict is None and asked == "auto":
        return f"{name.upper()} not tried yet (the first machine will)", []
    return name.upper(), []
