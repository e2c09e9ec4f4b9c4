"""`init-base`: from a source to an image in the store.

One image is made once: whoever else wants it meanwhile waits for the lock of its key and takes the
result. All work happens in base-images/.partial/<key>/; the image appears in the store by one rename.
What an interrupted call leaves there is used again (a download) or removed by the next one.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from agent_swarm import locks
from agent_swarm.errors import ImageError, NotFoundError, UsageError
from agent_swarm.events import Notice, StepDone, StepStarted
from agent_swarm.files import remove_tree
from agent_swarm.images import build, download, failures, formats, qcow2, sources
from agent_swarm.images.download import Checksum
from agent_swarm.images.scratch import discard_scratch
from agent_swarm.images.sources import BuildSource, FileSource, OfficialSource, UrlSource
from agent_swarm.images.store import DISK, INITRD, KERNEL, Description, ImageStore, Origin, file_digest
from agent_swarm.model import Firmware

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_swarm.config import Config
    from agent_swarm.events import Progress
    from agent_swarm.images.sources import Source
    from agent_swarm.model import Image
    from agent_swarm.paths import Paths

WAIT_FOR_OTHER_S = 4 * 3600.0
DOWNLOAD = "download"
_SHA256_HEX = 64


def obtain(
    source: str,
    *,
    paths: Paths,
    config: Config,
    sha256: str | None = None,
    refresh: bool = False,
    progress: Progress,
) -> Image:
    """The image of `source` ("auto", "build:trixie", "debian:13", a URL, a path: see sources.py).

    An image that is there already is returned at once, unless `refresh`. `sha256` is what the given or
    downloaded file must have, before any conversion. Blocks for minutes. Raises UsageError, NotFoundError
    for a missing file, ImageError for the rest; nothing half-made is ever listed as an image.
    """
    architecture = _host_architecture()
    can_build = shutil.which("mmdebstrap") is not None
    parsed = sources.parse(source, settings=config.images, architecture=architecture, can_build=can_build)
    pin = _parse_pin(sha256, parsed)
    asked_at = datetime.now(UTC)
    key = _key(parsed)
    store = ImageStore(paths)
    found = None if refresh else _stored(store, key, pin)
    if found is not None:
        return found
    with locks.hold(
        paths.lock(f"image-{key}"), wait_s=WAIT_FOR_OTHER_S, busy=f"image {parsed.name} is being made"
    ):
        found = _stored(store, key, pin)
        if found is not None and (not refresh or found.created_at >= asked_at):
            return found  # made while we waited
        work = paths.partial_images / key
        with _workspace(work) as result:
            if isinstance(parsed, BuildSource):
                description = _build(parsed, key, work, result, progress)
            else:
                description = _import(parsed, key, pin, work, result, architecture, progress)
            with _step(parsed.name, "store", progress):
                return store.publish(result, description)


def _build(source: BuildSource, key: str, work: Path, result: Path, progress: Progress) -> Description:
    _require_space(work, build.SPACE_NEEDED_BYTES, f"building {source.name}")
    with _step(source.name, "build", progress):
        built = build.build(source.recipe, work, subject=source.name, progress=progress)
    built.disk.rename(result / DISK)
    built.kernel.rename(result / KERNEL)
    built.initrd.rename(result / INITRD)
    return Description(
        origin=Origin(source.name, key),
        architecture=source.recipe.architecture,
        firmware=Firmware.DIRECT,
        kernel_command_line=source.recipe.kernel_command_line,
        virtual_size_bytes=qcow2.info(result / DISK).virtual_size_bytes,
        has_guest_agent=True,
    )


def _import(
    source: OfficialSource | UrlSource | FileSource,
    key: str,
    pin: Checksum | None,
    work: Path,
    result: Path,
    architecture: str,
    progress: Progress,
) -> Description:
    if isinstance(source, FileSource):
        given = source.path
        digest = _check_file(source, pin, progress)
    else:
        given, digest = _download(source, pin, work, progress)
    image_format = formats.inspect_foreign(given)
    # a raw file may be sparse; a compressed qcow2 grows when it is converted
    _require_space(work, 2 * given.stat().st_blocks * 512, f"converting {source.name}")
    with _step(source.name, "convert", progress):
        qcow2.convert(given, result / DISK, source_format=image_format)
    if not isinstance(source, OfficialSource):
        meant = f"{source.name} is taken for a cloud image for {architecture}: one that runs cloud-init"
        progress(Notice(meant))
    return Description(
        origin=Origin(source.name, key, digest),
        architecture=architecture,
        firmware=Firmware.UEFI if architecture == "aarch64" else Firmware.BIOS,
        kernel_command_line="",
        virtual_size_bytes=qcow2.info(result / DISK).virtual_size_bytes,
        has_guest_agent=False,
    )


def _check_file(source: FileSource, pin: Checksum | None, progress: Progress) -> str:
    with _step(source.name, "checksum", progress):
        try:
            digest = file_digest(source.path)
        except OSError as error:
            message = f"{source.path} cannot be read"
            raise ImageError(message, details=str(error)) from error
    if pin is not None and digest != pin.hex:
        message = f"{source.path.name} has the wrong checksum"
        details = f"expected sha256 {pin.hex} ({pin.origin})\n  actual sha256 {digest}"
        raise ImageError(message, details=details, hint="Get the file again, or correct the checksum.")
    return digest


def _download(
    source: OfficialSource | UrlSource, pin: Checksum | None, work: Path, progress: Progress
) -> tuple[Path, str]:
    file_name = unquote(PurePosixPath(urlsplit(source.url).path).name)
    target = work / DOWNLOAD
    expected = [] if pin is None else [pin]
    with _step(source.name, "download", progress), download.open_downloader(source.name, progress) as client:
        if isinstance(source, OfficialSource):
            listed = client.fetch_text(source.checksums_url)
            expected.append(
                download.find_checksum(
                    listed, file_name, algorithm=source.algorithm, origin=source.checksums_url
                )
            )
        client.fetch(source.url, target, checksums=tuple(expected))
    return target, file_digest(target)


@contextlib.contextmanager
def _workspace(work: Path) -> Iterator[Path]:
    """The directory for the finished files inside `work`. What stays after a failure is at most a download
    that can be continued; after success nothing stays."""
    result = work / "image"
    try:
        work.mkdir(mode=0o700, exist_ok=True)
        _keep_download_only(work)
        result.mkdir(mode=0o700)
    except OSError as error:
        raise failures.write_failed(error, doing="preparing the image", where=work.parent) from error
    try:
        yield result
    except BaseException:
        _keep_download_only(work)
        with contextlib.suppress(OSError):  # not empty: it holds a download
            work.rmdir()
        raise
    remove_tree(work)


def _keep_download_only(work: Path) -> None:
    discard_scratch(work)
    for entry in work.iterdir():
        if entry.is_dir():
            remove_tree(entry)
        elif entry.name not in (DOWNLOAD, f"{DOWNLOAD}.json"):
            entry.unlink()


def _stored(store: ImageStore, key: str, pin: Checksum | None) -> Image | None:
    found = store.find_origin(key)
    if found is None or (pin is not None and found[1].source_sha256 != pin.hex):
        return None
    return found[0]


def _parse_pin(sha256: str | None, source: Source) -> Checksum | None:
    if sha256 is None:
        return None
    text = sha256.strip().lower().removeprefix("sha256:")
    if len(text) != _SHA256_HEX or not set(text) <= set("0123456789abcdef"):
        message = f"{sha256!r} is no sha256 checksum"
        raise UsageError(message, hint="Give 64 hexadecimal digits.")
    if isinstance(source, BuildSource):
        message = f"{source.name} is built here and has no checksum beforehand"
        raise UsageError(message, hint="Leave --sha256 out, or download an image.")
    return Checksum("sha256", text, "--sha256")


def _key(source: Source) -> str:
    try:
        return sources.key(source)
    except FileNotFoundError as error:
        message = f"there is no file {source.name}"
        raise NotFoundError(message, hint="Give the path of a disk image.") from error
    except OSError as error:
        message = f"{source.name} cannot be read"
        raise ImageError(message, details=str(error)) from error


def _require_space(directory: Path, needed_bytes: int, doing: str) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        details = f"about {needed_bytes >> 20} MiB are needed, {free >> 20} MiB are free"
        raise failures.disk_full(doing=doing, where=directory, details=details)


def _host_architecture() -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


@contextlib.contextmanager
def _step(subject: str, step: str, progress: Progress) -> Iterator[None]:
    progress(StepStarted(subject, step))
    started = time.monotonic()
    yield
    progress(StepDone(subject, step, time.monotonic() - started))
