"""Builds a directly booting image from Debian packages: mmdebstrap, mke2fs, qemu-img.

As root it works plainly. An ordinary user's build runs in a user namespace with the subordinate ids of
/etc/subuid, so that the tree gets its right owners without any rights on the host:
https://manpages.debian.org/mmdebstrap. The namespace's root cannot enter the 0700 state directory, so
the tree is made in a scratch directory under TMPDIR or /var/tmp.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent_swarm import runner
from agent_swarm.errors import CommandError, ImageError
from agent_swarm.events import OutputLine
from agent_swarm.images import failures, qcow2
from agent_swarm.images.recipe import APT_OPTIONS, DPKG_OPTIONS, ROOT_LABEL, VIRTUAL_SIZE_BYTES
from agent_swarm.images.scratch import as_mapped_root, contained, is_root, scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_swarm.events import Progress
    from agent_swarm.images.recipe import Recipe

SPACE_NEEDED_BYTES = 3 << 30
"""Peak use of the scratch directory and the state directory together: tree, tar file, raw and qcow2 disk."""

SYSTEM_PATH = ":/usr/sbin:/sbin"
"""Where mke2fs is, though it may not be on an ordinary user's PATH."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# $1: directory to work in, $2: label, $3: size. lazy_itable_init=0: the file is all zeros already, so that
# no guest has to write zeros over its inode tables in the background.
_FILE_SYSTEM = """\
set -e
umask 022
mkdir -m 0755 "$1/root"
tar --exclude='./dev/*' -xf "$1/../root.tar" -C "$1/root"
truncate -s "$3" "$1/disk.raw"
mke2fs -q -t ext4 -L "$2" -m 1 -E lazy_itable_init=0,lazy_journal_init=0 -d "$1/root" "$1/disk.raw"
rm -rf "$1/root"
"""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    disk: Path
    kernel: Path
    initrd: Path


def build(recipe: Recipe, directory: Path, *, subject: str, progress: Progress) -> BuiltImage:
    """Build the recipe's image into `directory`: disk.qcow2, kernel, initrd.

    Minutes; needs a package mirror. What mmdebstrap says is sent as OutputLines. The content differs from
    build to build, since the archives move on. Raises ImageError: before anything is done where a tool or
    a right is missing, with the command that helps.
    """
    require_tools()
    with scratch(directory) as place:
        try:
            tree = _bootstrap(recipe, place, lambda line: progress(OutputLine(subject, line)))
            result = _take_boot_files(tree, directory)
            raw = _make_file_system(place)
        except CommandError as error:
            raise failures.program_failed(error, doing=f"building {subject}", where=place) from error
        except OSError as error:
            raise failures.write_failed(error, doing=f"building {subject}", where=directory) from error
        qcow2.convert(raw, result.disk, source_format="raw")
    return result


def require_tools() -> None:
    """Raise ImageError with the command that helps where a build cannot work on this host."""
    packages = {
        "mmdebstrap": "mmdebstrap",
        "mke2fs": "e2fsprogs",
        "qemu-img": "qemu-utils",
        "tar": "tar",
        "setpriv": "util-linux",
        "newuidmap": "uidmap",
    }
    if is_root():
        del packages["newuidmap"]
    missing = [package for program, package in packages.items() if not _installed(program)]
    if not KEYRING.exists():
        missing.append("debian-archive-keyring")
    if missing:
        message = f"an image cannot be built here: {', '.join(missing)} not installed"
        raise ImageError(
            message,
            hint=f"Run: sudo apt-get install {' '.join(missing)} (or download one: `--from debian:13`).",
        )
    if not is_root():
        _require_user_namespace()


def _require_user_namespace() -> None:
    try:
        runner.run(["mmdebstrap", "--unshare-helper", "true"], timeout_s=60.0)
    except CommandError as error:
        message = "an image cannot be built here by an ordinary user: user namespaces do not work"
        hint = "Run: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)"
        if "subuid" not in error.details and "subgid" not in error.details:
            hint = (
                "Run: sudo sysctl -w kernel.unprivileged_userns_clone=1 "
                "kernel.apparmor_restrict_unprivileged_userns=0 (the one that your system has)"
            )
        raise ImageError(
            message, details=error.details, hint=f"{hint}; or download an image: `--from debian:13`."
        ) from error


def _bootstrap(recipe: Recipe, place: Path, on_line: Callable[[str], None]) -> Path:
    overlay, tree = place / "files.tar", place / "root.tar"
    _write_files(recipe, overlay)
    argv = [
        *contained(),
        "mmdebstrap",
        f"--mode={'root' if is_root() else 'unshare'}",
        "--variant=apt",
        "--format=tar",
        f"--architectures={recipe.debian_architecture}",
        f"--include={','.join(recipe.packages)}",
        *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
        *(f"--aptopt={option}" for option in APT_OPTIONS),
        f"--essential-hook=tar-in {shlex.quote(os.fspath(overlay))} /",
        f'--customize-hook=chroot "$1" sh -c {shlex.quote(recipe.finish)}',
        recipe.suite,
        os.fspath(tree),
        *([recipe.mirror] if recipe.mirror else []),
    ]
    runner.stream(argv, on_line=on_line, environ=_environ(TMPDIR=os.fspath(place)))
    return tree


def _write_files(recipe: Recipe, target: Path) -> None:
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        made: set[str] = set()
        for name, text in recipe.files:
            for parent in reversed(Path(name).parents[:-1]):
                if os.fspath(parent) not in made:
                    entry = tarfile.TarInfo(os.fspath(parent))
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(entry)
                    made.add(os.fspath(parent))
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))


def _take_boot_files(tree: Path, directory: Path) -> BuiltImage:
    """Copy the newest kernel and its initrd out of the tree's tar file."""
    result = BuiltImage(directory / "disk.qcow2", directory / "kernel", directory / "initrd")
    wanted = {"./boot/vmlinuz-": result.kernel, "./boot/initrd.img-": result.initrd}
    with tarfile.open(tree) as archive:
        for member in archive:
            for prefix, target in wanted.items():
                if member.name.startswith(prefix) and member.isfile():
                    source = archive.extractfile(member)
                    assert source is not None
                    with target.open("wb") as stream:
                        shutil.copyfileobj(source, stream, 1 << 20)
    for prefix, target in wanted.items():
        if not target.exists():
            message = f"the packages brought no {prefix.removeprefix('./')}*"
            raise ImageError(message, hint="Try again; the package mirror may be in the middle of an update.")
    return result


def _make_file_system(place: Path) -> Path:
    work = place / "work"
    argv: list[str | Path] = ["sh", "-c", _FILE_SYSTEM, "sh", work, ROOT_LABEL, str(VIRTUAL_SIZE_BYTES)]
    runner.run([*contained(), *as_mapped_root(), *argv], timeout_s=1800.0, environ=_environ())
    return work / "disk.raw"


def _installed(program: str) -> bool:
    return shutil.which(program, path=_environ()["PATH"]) is not None


def _environ(**more: str) -> dict[str, str]:
    """English errors, and a PATH on which mke2fs and chroot are."""
    return {"LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", os.defpath) + SYSTEM_PATH, **more}
