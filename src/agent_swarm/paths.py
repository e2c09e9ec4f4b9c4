"""Every file that agent-swarm creates, in one place.

    ~/.agent-swarm/                     AGENT_SWARM_HOME overrides; 0700, every file in it 0600
    ├── config.json                     the user's settings (config.py)
    ├── registry.db (-wal, -shm)        environments, baselines, operations (registry/)
    ├── setup.sh                        runs in every new project machine; made once, then the user's
    ├── accelerators.json               verdicts of the accelerator probe (providers/qemu/accelerator.py)
    ├── base-images/
    │   ├── <sha256>/                   one image: manifest.json, disk.qcow2, kernel, initrd
    │   └── .partial/<key>/             an image in the making; never taken for one
    ├── projects/<environment id>/      a project machine's files, and its baselines
    ├── tasks/<environment id>/         a task machine's files (providers/qemu/provider.py says which)
    ├── fake/                           the fake provider's machines
    ├── ssh/
    │   ├── id_ed25519 (.pub)           the client key of this installation
    │   ├── config                      one Host per machine: `ssh fix-1.swarm`
    │   └── known_hosts                 one line per machine, by environment id
    ├── locks/<name>                    lock files; empty, their content means nothing
    ├── logs/<environment id>/          setup.log; agent-swarm.log beside the directories
    └── run/ -> a short directory       sockets, see `Paths.run`

A UNIX socket's path holds 107 bytes and a NUL (unix(7)). Where the state directory's own path is too
long for that, `run` lies in $XDG_RUNTIME_DIR or /tmp under a name made from the state directory's
hash, 0700 and checked to be ours.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from agent_swarm.errors import SwarmError, UsageError
from agent_swarm.model import EnvironmentId, ImageDigest, Kind

SOCKET_PATH_MAX_BYTES = 107
LONGEST_SOCKET_NAME = "0123456789ab.agent"
# OpenSSH binds "<ControlPath>.<16 random characters>" first and renames it
LONGEST_SSH_SOCKET_NAME = "0123456789ab.ssh.0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Paths:
    """The state directory's layout. Making a Paths touches nothing; `prepare` makes the directories."""

    home: Path
    run: Path
    """Sockets and pid records; short, and gone after a reboot where it lies in /run or /tmp."""

    @classmethod
    def from_environment(cls, environ: dict[str, str] | os._Environ[str] = os.environ) -> Paths:
        """The paths that AGENT_SWARM_HOME, or else the user's home directory, implies."""
        given = environ.get("AGENT_SWARM_HOME")
        if given is not None and not given.strip():
            message = "AGENT_SWARM_HOME is set but empty"
            raise UsageError(message, hint="Unset it, or name a directory.")
        try:
            home = Path(given).expanduser() if given else Path.home() / ".agent-swarm"
        except RuntimeError as error:  # "~nobody", or neither HOME nor an entry in the password database
            message = "the state directory cannot be told"
            raise UsageError(
                message, details=str(error), hint="Set AGENT_SWARM_HOME to a directory."
            ) from error
        return cls.at(home, environ)

    @classmethod
    def at(cls, home: Path, environ: dict[str, str] | os._Environ[str] = os.environ) -> Paths:
        home = Path(os.path.abspath(home))  # noqa: PTH100 - resolve() would follow the user's symlinks
        run = home / "run"
        if len(os.fsencode(run / LONGEST_SSH_SOCKET_NAME)) > SOCKET_PATH_MAX_BYTES:
            import hashlib

            tag = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
            base = environ.get("XDG_RUNTIME_DIR")
            parent = Path(base) if base and Path(base).is_dir() else Path("/tmp")
            run = parent / f"agent-swarm-{tag}"
        return cls(home=home, run=run)

    def prepare(self) -> None:
        """Make the directories that commands write to. Idempotent.

        Raises SwarmError where one cannot be made or belongs to somebody else.
        """
        for directory in (
            self.home,
            self.images,
            self.partial_images,
            self.projects,
            self.tasks,
            self.ssh,
            self.locks,
            self.logs,
            self.run,
        ):
            try:
                directory.mkdir(mode=0o700, parents=directory is self.home, exist_ok=True)
            except OSError as error:
                message = f"the state directory cannot be written: {directory}"
                raise SwarmError(
                    message,
                    details=str(error),
                    hint="Free space or set AGENT_SWARM_HOME to another directory.",
                ) from error
        found = self.run.lstat()  # a symlink that somebody else put into /tmp would lead elsewhere
        private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
        if found.st_uid != os.getuid() or not private:
            message = f"{self.run} is not a private directory of yours"
            raise SwarmError(message, hint=f"Remove {self.run}, or set XDG_RUNTIME_DIR.")

    @property
    def config(self) -> Path:
        return self.home / "config.json"

    @property
    def registry(self) -> Path:
        return self.home / "registry.db"

    @property
    def setup_script(self) -> Path:
        return self.home / "setup.sh"

    @property
    def accelerators(self) -> Path:
        return self.home / "accelerators.json"

    @property
    def images(self) -> Path:
        return self.home / "base-images"

    def image(self, digest: ImageDigest) -> Path:
        return self.images / digest

    @property
    def partial_images(self) -> Path:
        return self.images / ".partial"

    @property
    def projects(self) -> Path:
        return self.home / "projects"

    @property
    def tasks(self) -> Path:
        return self.home / "tasks"

    def machine(self, kind: Kind, environment: EnvironmentId) -> Path:
        """The directory of one machine's files."""
        return (self.projects if kind is Kind.PROJECT else self.tasks) / environment

    @property
    def fake(self) -> Path:
        return self.home / "fake"

    @property
    def ssh(self) -> Path:
        return self.home / "ssh"

    @property
    def ssh_key(self) -> Path:
        return self.ssh / "id_ed25519"

    @property
    def ssh_config(self) -> Path:
        return self.ssh / "config"

    @property
    def known_hosts(self) -> Path:
        return self.ssh / "known_hosts"

    @property
    def locks(self) -> Path:
        return self.home / "locks"

    def lock(self, name: str) -> Path:
        return self.locks / name

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def log(self) -> Path:
        return self.logs / "agent-swarm.log"

    def setup_log(self, environment: EnvironmentId) -> Path:
        return self.logs / environment / "setup.log"

    def ssh_socket(self, environment: EnvironmentId) -> Path:
        """OpenSSH's control socket of one machine."""
        return self.run / f"{environment}.ssh"

    def qmp_socket(self, environment: EnvironmentId) -> Path:
        return self.run / f"{environment}.qmp"

    def agent_socket(self, environment: EnvironmentId) -> Path:
        """The QEMU guest agent's channel."""
        return self.run / f"{environment}.agent"

    def process_record(self, environment: EnvironmentId) -> Path:
        """Which process runs the machine (processes.py)."""
        return self.run / f"{environment}.process"


def scratch_directory() -> Path:
    """Where short-lived files that may be large go (TMPDIR, else /tmp)."""
    import tempfile

    return Path(tempfile.gettempdir())
