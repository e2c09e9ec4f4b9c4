"""A guest that goes on from saved memory: its clock, its random numbers, and, where the memory was another
machine's, an identity of its own. The guest's half of the hygiene contract (providers/base.py).

Everything is done by one program in the guest, started through the guest agent: there is no network yet that
could be trusted. It is written in Perl, which is on every Debian and Ubuntu (perl-base is essential), as one
process with no modules (a second one restarts journald later): in emulation each process more costs a twentieth of
a second.

What each part rests on:

- random numbers: RNDADDENTROPY and RNDRESEEDCRNG of random(4) with 64 bytes from the host. Programs that keep a
  generator of their own (OpenSSL in a running server) are not reached: no system can.
- clock: the guest's own clock runs on from where it was saved, so it is set by the difference to the host's,
  measured through the agent before and checked through the agent after.
- host name, machine-id, boot id, SSH host keys: written to the disk and to the kernel; sshd reads its keys on SIGHUP and
  keeps the sessions that it has. cloud-init is told that this instance has had its first boot.
- secrets: processes with SESSION_SECRETS in their environment are killed. Memory that they gave back to the
  kernel is not wiped.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent_swarm import runner
from agent_swarm.errors import MachineError
from agent_swarm.model import SESSION_SECRETS

if TYPE_CHECKING:
    from agent_swarm.guest.agent import GuestAgent

ENTROPY_BYTES = 64
CLOCK_TOLERANCE_S = 1.0
PERL_CHECK = ("/usr/bin/perl", "-e", "1")
CLOCK_ATTEMPTS = 5
TIMEOUT_S = 60.0
_NS = 1_000_000_000

# numbers of clock_gettime, clock_settime and mount: arch/x86/entry/syscalls/syscall_64.tbl,
# include/uapi/asm-generic/unistd.h
_CALLS = {"x86_64": (228, 227, 165), "aarch64": (113, 112, 40)}

PROGRAM = r"""
$/ = undef;
my %in = split /\0/, <STDIN>, -1;
sub fail { print STDERR "$_[0]: $!\n"; exit 1 }
sub put {
    my ($path, $mode, $text) = @_;
    my $f;
    open($f, ">", "$path.new") && print($f $text) && close($f) or fail($path);
    chmod($mode, "$path.new") && rename("$path.new", $path) or fail($path);
}
sub names { opendir(my $d, $_[0]) or fail($_[0]); readdir $d }
sub get { open(my $f, "<", $_[0]) or return ""; my $text = <$f>; defined $text ? $text : "" }

my $e = pack("H*", $in{entropy});
sysopen(my $r, "/dev/urandom", 1) or fail("/dev/urandom");
ioctl($r, 0x40085203, pack("ii", 8 * length($e), length($e)) . $e) or fail("RNDADDENTROPY");
ioctl($r, 0x5207, 0) or fail("RNDRESEEDCRNG");

my $now = "\0" x 16;
syscall($in{gettime} + 0, 0, $now) == 0 or fail("clock_gettime");
my ($s, $ns) = unpack("qq", $now);
$ns += $in{offset_ns}; $s += $in{offset_s};
if ($ns >= 1000000000) { $ns -= 1000000000; $s++ }
$now = pack("qq", $s, $ns);
syscall($in{settime} + 0, 0, $now) == 0 or fail("clock_settime");
exit 0 unless length $in{id};

unless ($in{keep_secrets}) {
    my $found = 1;
    for (my $pass = 0; $found && $pass < 20; $pass++) {
        $found = 0;
        for my $pid (grep { /^\d+$/ } names("/proc")) {
            next unless get("/proc/$pid/environ") =~ /(?:^|\0)\Q$in{secrets}\E=/ && $pid != $$;
            get("/proc/$pid/stat") =~ /.*\) Z/s and next;
            $found = 1 if kill 9, $pid;
        }
    }
    $found and fail("a process with secrets does not end");
}

my $h;
open($h, ">", "/proc/sys/kernel/hostname") && syswrite($h, $in{host}) && close($h) or fail("hostname");
put("/etc/hostname", 0644, "$in{host}\n");
my $hosts = get("/etc/hosts");
$hosts =~ s/^127\.0\.1\.1\s.*$/127.0.1.1 $in{host} $in{host}/m;
put("/etc/hosts", 0644, $hosts);
put("/etc/machine-id", 0444, "$in{machine_id}\n");

# the kernel made it at its boot and never changes it: another file is laid over it, as containers do; written in
# place, since in a fork of a fork it lies there already
my ($id, $over, $none, $file) = ("/run/agent-swarm.boot-id", "/proc/sys/kernel/random/boot_id", "none");
open($file, ">", $id) && print($file "$in{boot_id}\n") && close($file) && chmod(0444, $id) or fail($id);
unless (get($over) eq "$in{boot_id}\n") {
    syscall($in{mount} + 0, $id, $over, $none, 4096, 0) == 0 or fail("boot_id");
}

for (grep { /^ssh_host_/ } names("/etc/ssh")) { unlink "/etc/ssh/$_" or fail($_) }
put("/etc/ssh/ssh_host_ed25519_key", 0600, $in{private_key});
put("/etc/ssh/ssh_host_ed25519_key.pub", 0644, $in{public_key});
if (get("/run/sshd.pid") =~ /^(\d+)/) { kill "HUP", $1 }

my $cloud = "/var/lib/cloud";
if (get("$cloud/data/instance-id") =~ /^(\S+)/ && $1 ne $in{id}) {
    symlink($1, "$cloud/instances/$in{id}") or fail("instances");
    unlink "$cloud/instance";
    symlink("$cloud/instances/$in{id}", "$cloud/instance") or fail("instance");
    put("$cloud/data/instance-id", 0644, "$in{id}\n");
}

# journald keeps the id that it read at its start
unless (fork) {
    open(STDIN, "<", "/dev/null"); open(STDOUT, ">", "/dev/null"); open(STDERR, ">", "/dev/null");
    sleep 15;
    exec "systemctl", "restart", "systemd-journald.service";
}
"""


@dataclass(frozen=True, slots=True)
class Renewed:
    """What a guest was given. `host_key` is the public key line ("ssh-ed25519 AAAA...")."""

    machine_id: str
    host_key: str


def refresh(agent: GuestAgent, architecture: str) -> None:
    """New entropy and the right time for a guest that stays who it is. Raises MachineError where it cannot be had."""
    _run(agent, architecture, {})
    _check_clock(agent, architecture)


def renew(
    agent: GuestAgent,
    architecture: str,
    *,
    environment: str,
    host_name: str,
    keep_secrets: bool,
    scratch: Path,
) -> Renewed:
    """All that the hygiene contract asks of a guest whose memory was another's. Raises MachineError.

    `scratch` is a private directory for the new host key, which is removed from it.
    """
    private, public = _new_host_key(scratch)
    machine_id = secrets.token_hex(16)
    _run(
        agent,
        architecture,
        {
            "id": environment,
            "host": host_name,
            "machine_id": machine_id,
            "mount": str(_CALLS[architecture][2]),
            "boot_id": str(uuid.uuid4()),
            "private_key": private,
            "public_key": f"{public}\n",
            "secrets": SESSION_SECRETS,
            "keep_secrets": "1" if keep_secrets else "",
        },
    )
    _check_clock(agent, architecture)
    return Renewed(machine_id, public)


def _run(agent: GuestAgent, architecture: str, arguments: dict[str, str]) -> None:
    gettime, settime, _ = _CALLS[architecture]
    offset_s, offset_ns = divmod(clock_offset_ns(agent)[0], _NS)
    fields = {
        "entropy": secrets.token_hex(ENTROPY_BYTES),
        "gettime": str(gettime),
        "settime": str(settime),
        "offset_s": str(offset_s),
        "offset_ns": str(offset_ns),
        "id": "",
        **arguments,
    }
    # on stdin, as what is secret must not stand in an argument vector; a perl hash, key and value in turn
    given = "\0".join(text for pair in fields.items() for text in pair)
    done = agent.execute(["/usr/bin/perl", "-e", PROGRAM], stdin=given.encode(), timeout_s=TIMEOUT_S)
    if done.returncode != 0:
        message = "the machine could not be made itself after its memory was loaded"
        said = done.stderr.decode("utf-8", "replace").strip()
        raise MachineError(message, details=said or f"its program ended with {done.returncode}")


def clock_offset_ns(agent: GuestAgent) -> tuple[int, int]:
    """How far the host's clock is ahead of the guest's, and by how much that may be wrong: half the time that the agent
    took to answer."""
    before = time.time_ns()
    guest = agent.call("guest-get-time")
    after = time.time_ns()
    if not isinstance(guest, int):
        message = "the guest agent does not tell the time"
        raise MachineError(message)
    return (before + after) // 2 - guest, (after - before) // 2


def _check_clock(agent: GuestAgent, architecture: str) -> None:
    for _ in range(CLOCK_ATTEMPTS):
        offset_ns, error_ns = clock_offset_ns(agent)
        if abs(offset_ns) + error_ns < CLOCK_TOLERANCE_S * _NS:
            return
        _run(agent, architecture, {})  # the answer that it was set by had taken too long
    message = f"the machine's clock is off by {offset_ns / _NS:.1f} s and cannot be set"
    raise MachineError(message, hint="The host may be overloaded: try again.")


def _new_host_key(scratch: Path) -> tuple[str, str]:
    with tempfile.TemporaryDirectory(prefix=".host-key-", dir=scratch) as directory:
        path = Path(directory, "key")
        runner.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", os.fspath(path)],
            timeout_s=TIMEOUT_S,
        )
        public = " ".join(path.with_suffix(".pub").read_text(encoding="ascii").split()[:2])
        return path.read_text(encoding="ascii"), public
