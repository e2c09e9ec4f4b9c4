"""What `init-base --from` can be given, parsed into one of four kinds of source.

Source of the official names: https://cloud-images.ubuntu.com/releases/ and
https://cloud.debian.org/images/cloud/.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from agent_swarm.errors import UsageError
from agent_swarm.images.recipe import DEBIAN_ARCHITECTURES, SUITES, Recipe

if TYPE_CHECKING:
    from agent_swarm.config import ImageSettings

DEBIAN_CODENAMES = {"12": "bookworm", "13": "trixie"}
UBUNTU_RELEASES = ("24.04",)

NAMED = (
    "auto",
    *(f"build:{suite}" for suite in SUITES),
    *(f"debian:{release}" for release in sorted(DEBIAN_CODENAMES, reverse=True)),
    *(f"ubuntu:{release}" for release in UBUNTU_RELEASES),
)


@dataclass(frozen=True, slots=True)
class BuildSource:
    """Built here from Debian packages."""

    name: str
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class OfficialSource:
    """A distribution's cloud image, with the file that lists its checksum."""

    name: str
    url: str
    checksums_url: str
    algorithm: str


@dataclass(frozen=True, slots=True)
class UrlSource:
    """Any disk image on the web. `name` is the URL without its query, which may hold a token."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class FileSource:
    """A disk image on this host."""

    name: str
    path: Path


Source = BuildSource | OfficialSource | UrlSource | FileSource


def parse(text: str, *, settings: ImageSettings, architecture: str, can_build: bool) -> Source:
    """The source that `text` means, for machines of `architecture` ("x86_64", "aarch64").

    `auto` builds Debian 13 where `can_build` (mmdebstrap is installed), else downloads it. Nothing is looked
    at but the shape of `text` and, for a bare word, whether there is such a file. Raises UsageError.
    """
    if architecture not in DEBIAN_ARCHITECTURES:
        message = f"there are no images for {architecture} hosts"
        raise UsageError(message, hint=f"Supported are {' and '.join(DEBIAN_ARCHITECTURES)}.")
    if text == "auto":
        text = "build:trixie" if can_build else "debian:13"
    scheme, separator, rest = text.partition(":")
    if scheme == "build" and rest in SUITES:
        return BuildSource(text, Recipe(rest, architecture, settings.package_mirror))
    if scheme == "debian" and rest in DEBIAN_CODENAMES:
        return _debian(text, rest, settings.debian_mirror, DEBIAN_ARCHITECTURES[architecture])
    if scheme == "ubuntu" and rest in UBUNTU_RELEASES:
        return _ubuntu(text, rest, settings.ubuntu_mirror, DEBIAN_ARCHITECTURES[architecture])
    if separator and rest.startswith("//"):
        return _url(text)
    path = _path(text)
    if path is not None:
        return FileSource(str(path), path)
    near = difflib.get_close_matches(text, NAMED, n=1, cutoff=0.4)
    meant = f"Did you mean {near[0]!r}? " if near else ""
    message = f"{text!r} is no image source"
    raise UsageError(
        message, hint=f"{meant}Use {', '.join(NAMED)}, an http(s) URL, or the path of a disk image."
    )


def key(source: Source) -> str:
    """What stands for the source and for all that shapes its content, usable as a file name.

    The same key means that an image need not be made again: the recipe of a build, the address of a download,
    a local file's path, size and time of change. Raises OSError where a local file cannot be looked at.
    """
    if isinstance(source, BuildSource):
        return f"build-{source.recipe.suite}-{source.recipe.key}"
    if isinstance(source, FileSource):
        found = source.path.stat()
        text = f"{source.path}\0{found.st_dev}\0{found.st_ino}\0{found.st_size}\0{found.st_mtime_ns}"
        return f"file-{_short_hash(text)}"
    return f"url-{_short_hash(source.url)}"


def _debian(name: str, release: str, mirror: str, architecture: str) -> OfficialSource:
    folder = f"{mirror.rstrip('/')}/{DEBIAN_CODENAMES[release]}/latest"
    url = f"{folder}/debian-{release}-generic-{architecture}.qcow2"
    return OfficialSource(name, url, f"{folder}/SHA512SUMS", "sha512")


def _ubuntu(name: str, release: str, mirror: str, architecture: str) -> OfficialSource:
    folder = f"{mirror.rstrip('/')}/releases/{release}/release"
    url = f"{folder}/ubuntu-{release}-server-cloudimg-{architecture}.img"
    return OfficialSource(name, url, f"{folder}/SHA256SUMS", "sha256")


def _url(text: str) -> Source:
    try:
        parts = urlsplit(text)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as error:
        message = f"{text!r} is no valid URL"
        raise UsageError(message, details=str(error)) from error
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        path = Path(unquote(parts.path))
        return FileSource(str(path), path)
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        message = f"images cannot be had from {text!r}"
        raise UsageError(message, hint="Use an http:// or https:// URL, or the path of a disk image.")
    if parts.username is not None or parts.password is not None:
        message = "the URL of an image must not hold a user name or password"
        raise UsageError(message, hint="Download the file yourself, and give its path.")
    return UrlSource(urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")), urlunsplit(parts))


def _path(text: str) -> Path | None:
    """The file that `text` means, None where it does not look like one."""
    if not text or "\0" in text:
        return None
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError as error:  # "~name" of a user that there is not
        message = f"{text!r} is no path of a disk image"
        raise UsageError(message, details=str(error), hint="Give the whole path.") from error
    return path if "/" in text or text.startswith("~") or path.is_file() else None


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
