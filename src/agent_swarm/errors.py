"""Everything that agent-swarm raises on purpose.

    SwarmError                    exit 1   something failed; the base of all others
    ├── UsageError                exit 2   the request itself is wrong (a name, an option, the config)
    │   └── ConfigError
    ├── NotFoundError             exit 3   no such task, project, image, checkpoint
    ├── ConflictError             exit 4   it exists already, or its state does not allow this
    │   └── BusyError             exit 4   another command holds it just now
    ├── ProviderUnavailableError  exit 5   the back end cannot be used; the hint says what installs it
    ├── ResourceLimitError        exit 6   the host cannot carry it; `--force` overrides
    ├── RegistryError             exit 1   the registry cannot be read or written
    ├── ImageError                exit 1   an image could not be had, or is damaged
    ├── MachineError              exit 1   a machine did not do what was asked of it
    │   ├── BootError                      it did not come up in time; details end with the console's last lines
    │   └── SetupError                     its set-up script failed; details are the last lines of its output
    ├── UnreachableError          exit 255 no session with a machine could be opened
    └── CommandError              exit 1   a program that we started failed

Every error has a message (what happened), optionally details (why: the evidence), and a hint (what
to do next). Library code raises them; only the command line prints them.
"""

from __future__ import annotations

from typing import ClassVar


class SwarmError(Exception):
    """Base of all errors. `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, details: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.hint = hint


class UsageError(SwarmError):
    exit_code = 2


class ConfigError(UsageError):
    """config.json is not valid; the message names the key by its path."""


class NotFoundError(SwarmError):
    exit_code = 3


class ConflictError(SwarmError):
    exit_code = 4


class BusyError(ConflictError):
    """Another process holds the environment's lock."""


class ProviderUnavailableError(SwarmError):
    exit_code = 5


class ResourceLimitError(SwarmError):
    exit_code = 6


class RegistryError(SwarmError):
    """The registry is read-only, damaged, from a newer version, or its disk is full."""


class ImageError(SwarmError):
    pass


class MachineError(SwarmError):
    pass


class BootError(MachineError):
    pass


class SetupError(MachineError):
    pass


class UnreachableError(SwarmError):
    exit_code = 255


class CommandError(SwarmError):
    """A helper program failed; `details` holds the end of its stderr, `returncode` its exit code."""

    def __init__(
        self, message: str, *, returncode: int | None = None, details: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, details=details, hint=hint)
        self.returncode = returncode
