"""The images of this installation: content-addressed directories below base-images/.

    base-images/<sha256 of disk.qcow2>/   manifest.json, disk.qcow2 and, for a direct boot, kernel and initrd
    base-images/.partial/<key>/           an image in the making, guarded by the lock image-<key>

An image appears by one rename, complete and synced, and never changes afterwards but for its manifest,
which gains a record when another source turns out to have the same content.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from agent_swarm import locks
from agent_swarm.errors import BusyError, ImageError, NotFoundError
from agent_swarm.files import remove_tree, sync_directory, write_atomically
from agent_swarm.images import failures
from agent_swarm.images.scratch import discard_scratch
from agent_swarm.model import Firmware, Image, ImageDigest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agent_swarm.paths import Paths

MANIFEST = "manifest.json"
DISK = "disk.qcow2"
KERNEL = "kernel"
INITRD = "initrd"
FORMAT = 1
DIGEST_PREFIX_MIN = 6
INIT_BASE_HINT = "Make one with `agent-swarm init-base`; `agent-swarm image list` shows those there are."

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One source that this content came from."""

    name: str
    key: str
    """Stands for the source and all that shapes its content; equal keys need not be fetched twice."""
    source_sha256: str = ""
    """Of the file as it was given or downloaded, before any conversion; "" for a built image."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """manifest.json, version `format`."""

    format: int
    origins: tuple[Origin, ...]
    architecture: str
    firmware: Firmware
    kernel_command_line: str
    virtual_size_bytes: int
    has_guest_agent: bool
    created_at: datetime
    files: dict[str, str]
    """sha256 of every file beside the manifest, by name."""
    sizes: dict[str, int]


class _Version(msgspec.Struct):
    format: int


@dataclass(frozen=True, slots=True)
class Description:
    """What `publish` is told of an image; the rest it sees itself."""

    origin: Origin
    architecture: str
    firmware: Firmware
    kernel_command_line: str
    virtual_size_bytes: int
    has_guest_agent: bool


@dataclass(frozen=True, slots=True)
class ImageStore:
    paths: Paths

    def list(self) -> Sequence[Image]:
        """Every complete image, newest first. What is damaged is left out; `problems` names it."""
        return [image for image, _ in self._complete()]

    def problems(self) -> dict[str, str]:
        """What is wrong, by the name of the damaged entry in base-images/. Sizes are compared, not content."""
        found: dict[str, str] = {}
        for directory in self._directories():
            try:
                self._load(directory)
            except ImageError as error:
                found[directory.name] = error.message
        return found

    def find(self, reference: str) -> Image:
        """The image with this digest, unique digest prefix (6 or more digits) or source name.

        Of several with the same name the newest. Raises NotFoundError.
        """
        complete = self._complete()
        for image, manifest in complete:
            if reference == image.digest or any(origin.name == reference for origin in manifest.origins):
                return image
        if len(reference) >= DIGEST_PREFIX_MIN:
            near = [image for image, _ in complete if image.digest.startswith(reference)]
            if len(near) == 1:
                return near[0]
            if near:
                message = f"{reference!r} stands for {len(near)} images"
                raise NotFoundError(message, hint="Give more digits; `agent-swarm image list` shows them.")
        message = f"there is no image {reference!r}"
        raise NotFoundError(message, hint=INIT_BASE_HINT)

    def get(self, digest: ImageDigest) -> Image:
        """The image with exactly this digest. Raises ImageError where it is missing or damaged."""
        directory = self.paths.image(digest)
        if not directory.is_dir():
            message = f"base image {digest[:12]} is missing"
            raise ImageError(
                message,
                details=f"{directory} does not exist",
                hint="Restore that directory from a backup, or delete the machines that build on it.",
            )
        return _image(directory, self._load(directory))

    def newest(self) -> Image | None:
        complete = self.list()
        return complete[0] if complete else None

    def find_origin(self, key: str) -> tuple[Image, Origin] | None:
        """The newest image that came from the source with this key, and what was noted of it."""
        for image, manifest in self._complete():
            for origin in manifest.origins:
                if origin.key == key:
                    return image, origin
        return None

    def publish(self, directory: Path, description: Description) -> Image:
        """Take a directory with disk.qcow2 (and kernel, initrd) into the store, and return its image.

        `directory` lies on the store's file system and holds nothing else; it is gone afterwards. Content that
        is there already is not stored twice. Raises ImageError; the store is then as it was.
        """
        try:
            return self._publish(directory, description)
        except OSError as error:
            raise failures.write_failed(error, doing="storing the image", where=self.paths.images) from error

    def _publish(self, directory: Path, description: Description) -> Image:
        files = {path.name: path for path in directory.iterdir()}
        digests = {name: file_digest(path) for name, path in files.items()}
        manifest = Manifest(
            format=FORMAT,
            origins=(description.origin,),
            architecture=description.architecture,
            firmware=description.firmware,
            kernel_command_line=description.kernel_command_line,
            virtual_size_bytes=description.virtual_size_bytes,
            has_guest_agent=description.has_guest_agent,
            created_at=datetime.now(UTC),
            files=digests,
            sizes={name: path.stat().st_size for name, path in files.items()},
        )
        digest = ImageDigest(digests[DISK])
        target = self.paths.image(digest)
        with locks.hold(
            self.paths.lock(f"image-store-{digest[:12]}"), wait_s=60.0, busy=f"image {digest[:12]} is in use"
        ):
            if target.exists():
                existing = self._load_or_none(target)
                if existing is not None and existing.files == digests:
                    others = [origin for origin in existing.origins if origin.key != description.origin.key]
                    merged = msgspec.structs.replace(
                        existing, origins=(description.origin, *others), created_at=manifest.created_at
                    )
                    write_atomically(target / MANIFEST, _encode(merged))
                    remove_tree(directory)
                    return _image(target, merged)
                # same disk, damaged or with another kernel: the new one takes its place
                target.rename(self.paths.partial_images / f"replaced-{digest}")
            for path in files.values():
                path.chmod(0o400)
                _sync_file(path)
            write_atomically(directory / MANIFEST, _encode(manifest))
            directory.chmod(0o700)
            directory.rename(target)
            sync_directory(self.paths.images)
            remove_tree(self.paths.partial_images / f"replaced-{digest}")
        return _image(target, manifest)

    def remove(self, digest: ImageDigest) -> None:
        """Remove an image, whole or damaged; silent where it is gone. The caller has made sure that no
        machine builds on it."""
        gone = self.paths.partial_images / f"removed-{digest}"
        try:
            remove_tree(gone)
            self.paths.image(digest).rename(gone)  # at once no longer an image
        except FileNotFoundError:
            return
        sync_directory(self.paths.images)
        remove_tree(gone)

    def verify(self, image: Image) -> None:
        """Read the image whole and compare it with its digests. Raises ImageError where it differs."""
        directory = self.paths.image(image.digest)
        manifest = self._load(directory)
        for name, expected in manifest.files.items():
            actual = file_digest(directory / name)
            if actual != expected or (name == DISK and actual != image.digest):
                message = f"base image {image.digest[:12]} is damaged: {name} has changed"
                raise ImageError(
                    message,
                    details=f"expected sha256 {expected}\n  actual sha256 {actual}",
                    hint=f"Remove it and get it again: `agent-swarm init-base --from {image.name}`.",
                )

    def partials(self) -> Sequence[Path]:
        """Leftovers of interrupted work: what is in the making, but by nobody just now."""
        try:
            entries = sorted(self.paths.partial_images.iterdir())
        except FileNotFoundError:
            return []
        return [entry for entry in entries if locks.is_free(self.paths.lock(f"image-{entry.name}"))]

    def remove_partials(self) -> Sequence[Path]:
        """Remove the leftovers, resumable downloads included, and return what was removed."""
        return [entry for entry in self.partials() if self.remove_partial(entry)]

    def remove_partial(self, entry: Path) -> bool:
        """Remove one of the leftovers; False where somebody has taken it up again meanwhile."""
        lock = self.paths.lock(f"image-{entry.name}")
        try:
            with locks.hold(lock, busy=""):
                discard_scratch(entry)
                remove_tree(entry)
                locks.forget(lock)
        except BusyError:
            return False
        return True

    def _directories(self) -> Sequence[Path]:
        try:
            entries = list(self.paths.images.iterdir())
        except FileNotFoundError:
            return []
        return sorted(entry for entry in entries if _DIGEST.fullmatch(entry.name))

    def _complete(self) -> Sequence[tuple[Image, Manifest]]:
        found = []
        for directory in self._directories():
            manifest = self._load_or_none(directory)
            if manifest is not None:
                found.append((_image(directory, manifest), manifest))
        return sorted(found, key=lambda pair: (pair[0].created_at, pair[0].digest), reverse=True)

    def _load_or_none(self, directory: Path) -> Manifest | None:
        try:
            return self._load(directory)
        except ImageError:
            return None  # `problems` says what is wrong with it

    def _load(self, directory: Path) -> Manifest:
        """The manifest, once every file that it names is there in its full size. Raises ImageError."""
        name = directory.name[:12]
        again = f"Remove {directory} if no machine builds on it, and run `agent-swarm init-base` again."
        try:
            text = (directory / MANIFEST).read_bytes()
            version = msgspec.json.decode(text, type=_Version).format
            if version != FORMAT:
                message = f"base image {name} has format {version}, this version reads {FORMAT}"
                raise ImageError(message, hint="Update agent-swarm.")
            manifest = msgspec.json.decode(text, type=Manifest)
            for file, size in manifest.sizes.items():
                actual = (directory / file).stat().st_size
                if actual != size:
                    message = f"base image {name} is damaged: {file} has {actual} bytes instead of {size}"
                    raise ImageError(message, hint=again)
        except msgspec.DecodeError as error:
            message = f"base image {name} is damaged: its manifest cannot be read"
            raise ImageError(message, details=str(error), hint=again) from error
        except OSError as error:
            message = f"base image {name} is damaged: {error.strerror}: {error.filename}"
            raise ImageError(message, hint=again) from error
        direct = manifest.firmware is Firmware.DIRECT
        wanted = {DISK, KERNEL, INITRD} if direct else {DISK}
        if set(manifest.files) != wanted or set(manifest.sizes) != wanted or not manifest.origins:
            message = f"base image {name} is damaged: its manifest does not name its files"
            raise ImageError(message, hint=again)
        return manifest


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The file's digest in hex. Reads it whole; raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _image(directory: Path, manifest: Manifest) -> Image:
    direct = manifest.firmware is Firmware.DIRECT
    return Image(
        digest=ImageDigest(directory.name),
        name=manifest.origins[0].name,
        architecture=manifest.architecture,
        firmware=manifest.firmware,
        disk=directory / DISK,
        kernel=directory / KERNEL if direct else None,
        initrd=directory / INITRD if direct else None,
        kernel_command_line=manifest.kernel_command_line,
        virtual_size_bytes=manifest.virtual_size_bytes,
        size_bytes=sum(manifest.sizes.values()),
        has_guest_agent=manifest.has_guest_agent,
        created_at=manifest.created_at,
    )


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
