"""The user's settings: ~/.agent-swarm/config.json.

Strict: an unknown or ill-typed key is an error that names the key's path and the nearest valid one.
Every setting has a default, so the file may be missing, empty or hold only what differs.
docs/config.schema.json is `json_schema()`; a test keeps it so.
"""

from __future__ import annotations

import re
import typing
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from agent_swarm.errors import ConfigError
from agent_swarm.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_swarm.paths import Paths

Meta = msgspec.Meta


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A group of settings."""


class ResourceSettings(Section, frozen=True):
    cpus: Annotated[int, Meta(ge=1, le=512, description="Virtual CPUs of a machine.")] = 2
    memory_mib: Annotated[int, Meta(ge=256, le=4_194_304, description="Memory of a machine in MiB.")] = 4096
    disk_gib: Annotated[
        int,
        Meta(
            ge=1, le=65_536, description="Size of a machine's disk in GiB; only what is written takes space."
        ),
    ] = 20


class LimitSettings(Section, frozen=True):
    memory_reserve_mib: Annotated[
        int, Meta(ge=0, description="Memory of the host, in MiB, that machines must leave free.")
    ] = 1024
    disk_reserve_gib: Annotated[
        int,
        Meta(
            ge=0,
            description="Space on the state directory's disk, in GiB, that a new machine must leave free.",
        ),
    ] = 2
    disk_growth_gib: Annotated[
        int,
        Meta(
            ge=0,
            description="How much a running machine's disk is expected to grow, in GiB; kept for each of them.",
        ),
    ] = 1
    parallel: Annotated[
        int, Meta(ge=1, le=256, description="How many machines `bulk` commands work on at the same time.")
    ] = 4


class TimeoutSettings(Section, frozen=True):
    boot_s: Annotated[
        float, Meta(ge=1, description="Seconds that a machine has from power-on to its first SSH session.")
    ] = 300.0
    setup_s: Annotated[float, Meta(ge=1, description="Seconds that setup.sh may take.")] = 3600.0
    stop_s: Annotated[
        float, Meta(ge=0, description="Seconds that a machine has to shut down before its power is cut.")
    ] = 90.0


class ImageSettings(Section, frozen=True):
    default: Annotated[
        str,
        Meta(
            description="What `init-base` and `quickstart` use when no source is given: `auto` or a source."
        ),
    ] = "auto"
    ubuntu_mirror: Annotated[
        str, Meta(pattern="^https?://", description="Where Ubuntu's cloud images are downloaded from.")
    ] = "https://cloud-images.ubuntu.com"
    debian_mirror: Annotated[
        str, Meta(pattern="^https?://", description="Where Debian's cloud images are downloaded from.")
    ] = "https://cloud.debian.org/images/cloud"
    package_mirror: Annotated[
        str,
        Meta(
            description="Debian package mirror for `build:` images; empty: the one that mmdebstrap chooses."
        ),
    ] = ""


class BaselineSettings(Section, frozen=True):
    memory: Annotated[
        bool,
        Meta(
            description="Whether a baseline of a running project holds its memory, so that tasks need not boot."
        ),
    ] = True


class CheckpointSettings(Section, frozen=True):
    automatic: Annotated[
        bool, Meta(description="Whether `restore` saves the present state as a checkpoint first.")
    ] = True
    keep_automatic_h: Annotated[
        float,
        Meta(
            ge=0, description="Hours that checkpoints which `restore` and `fork` made by themselves are kept."
        ),
    ] = 24.0


class SshSettings(Section, frozen=True):
    forward_agent: Annotated[
        bool, Meta(description="Whether sessions forward the user's SSH agent into the machine.")
    ] = True
    keep_open_s: Annotated[
        int,
        Meta(
            ge=0,
            description="Seconds that the shared connection to a machine stays open after its last command.",
        ),
    ] = 600


class QemuSettings(Section, frozen=True):
    accelerator: Annotated[
        Literal["auto", "kvm", "hvf", "whpx", "tcg"],
        Meta(description="What runs guest code; `auto` takes the fastest that a probe saw working."),
    ] = "auto"
    network: Annotated[
        Literal["auto", "passt", "slirp"],
        Meta(description="User-mode network; with `slirp` guests can reach services on the host's loopback."),
    ] = "auto"


class Config(Section, frozen=True):
    provider: Annotated[
        str, Meta(description="The back end for new projects: `auto` or a provider's name.")
    ] = "auto"
    editor: Annotated[
        str, Meta(description="Command that `code` starts: Visual Studio Code or one that takes its options.")
    ] = "code"
    resources: ResourceSettings = msgspec.field(default_factory=ResourceSettings)
    limits: LimitSettings = msgspec.field(default_factory=LimitSettings)
    timeouts: TimeoutSettings = msgspec.field(default_factory=TimeoutSettings)
    images: ImageSettings = msgspec.field(default_factory=ImageSettings)
    baselines: BaselineSettings = msgspec.field(default_factory=BaselineSettings)
    checkpoints: CheckpointSettings = msgspec.field(default_factory=CheckpointSettings)
    ssh: SshSettings = msgspec.field(default_factory=SshSettings)
    qemu: QemuSettings = msgspec.field(default_factory=QemuSettings)


def load(paths: Paths) -> Config:
    """The settings of `paths.config`, defaults where it is silent. Raises ConfigError."""
    try:
        text = paths.config.read_bytes()
    except FileNotFoundError:
        return Config()
    except OSError as error:
        message = f"{paths.config} cannot be read"
        raise ConfigError(message, details=str(error)) from error
    if not text.strip():
        return Config()
    return parse(text, origin=str(paths.config))


def parse(text: bytes, *, origin: str) -> Config:
    """Settings from JSON. Raises ConfigError, whose hint names the nearest valid key."""
    try:
        return msgspec.json.decode(text, type=Config)
    except msgspec.ValidationError as error:
        message = f"{origin}: {_explain(str(error))}"
        raise ConfigError(message, hint=_nearest(str(error))) from error
    except msgspec.DecodeError as error:
        message = f"{origin} is not valid JSON"
        raise ConfigError(
            message, details=str(error), hint="See `agent-swarm config list` for every setting."
        ) from error


def get(config: Config, key: str) -> object:
    """The value at a dotted path ("resources.cpus"). Raises ConfigError for an unknown one."""
    value: object = config
    for part in _checked(key).split("."):
        value = getattr(value, part)
    return value


def settings() -> Iterator[tuple[str, str]]:
    """Every setting's dotted path and description, in the order of the file."""
    for path, annotation in _leaves(Config, ""):
        metas = [entry for entry in typing.get_args(annotation) if isinstance(entry, msgspec.Meta)]
        yield path, (metas[0].description or "") if metas else ""


def set_value(paths: Paths, key: str, text: str) -> None:
    """Change one setting in the file. `text` is taken as it is where the setting is a string, else as JSON.

    Nothing is written unless the whole result is valid. Raises ConfigError, also where the file cannot be
    written.
    """
    import json

    _checked(key)
    load(paths)
    raw = paths.config.read_bytes() if paths.config.exists() else b""
    document: dict[str, Any] = json.loads(raw) if raw.strip() else {}
    *sections, leaf = key.split(".")
    target = document
    for section in sections:
        target = target.setdefault(section, {})
    current = get(load(paths), key)
    if isinstance(current, str):
        target[leaf] = text
    else:
        try:
            target[leaf] = json.loads(text)
        except ValueError:
            target[leaf] = text
    result = json.dumps(document, indent=2).encode() + b"\n"
    parse(result, origin=f"{key} = {text}")
    try:
        write_atomically(paths.config, result)
    except OSError as error:
        message = f"{paths.config} cannot be written"
        raise ConfigError(message, details=str(error)) from error


def json_schema() -> bytes:
    """The JSON Schema (2020-12) of config.json."""
    import json

    schema = msgspec.json.schema(Config)
    return json.dumps(schema, indent=2, sort_keys=True).encode() + b"\n"


def _leaves(section: type[Section], prefix: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(section, include_extras=True)
    for name in section.__struct_fields__:
        annotation = hints[name]
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _leaves(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", annotation


def _checked(key: str) -> str:
    known = [path for path, _ in settings()]
    if key not in known:
        import difflib

        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        message = f"there is no setting {key!r}"
        hint = f"Did you mean {near[0]!r}?" if near else "`agent-swarm config list` shows every setting."
        raise ConfigError(message, hint=hint)
    return key


def _explain(problem: str) -> str:
    return problem.replace("Object contains unknown field", "unknown key").replace("$.", "")


def _nearest(problem: str) -> str:
    found = re.search(r"unknown field `([^`]*)`(?: - at `\$\.?([^`]*)`)?", problem)
    if found is None:
        return "`agent-swarm config list` shows every setting with its default."
    import difflib

    name, where = found[1], found[2] or ""
    known = [path for path, _ in settings()]
    wanted = f"{where}.{name}".strip(".")
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.3)
    near = (
        near
        or [path for path in known if difflib.get_close_matches(name, [path.rpartition(".")[2]], n=1)][:1]
    )
    return f"Did you mean {near[0]!r}?" if near else "`agent-swarm config list` shows every setting."
