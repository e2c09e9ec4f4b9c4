"""`obtain` end to end: files, downloads, two at once, kill -9 and a full disk."""

from __future__ import annotations

import hashlib
import random
import resource
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from agent_swarm.config import Config, ImageSettings
from agent_swarm.errors import ImageError, NotFoundError, UsageError
from agent_swarm.events import Event, ignore
from agent_swarm.images import qcow2
from agent_swarm.images.obtain import obtain
from agent_swarm.images.store import ImageStore
from agent_swarm.model import Firmware, Image
from agent_swarm.paths import Paths
from tests.support.image_server import ImageServer, Served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20

OBTAIN = """\
import sys
from pathlib import Path
from agent_swarm.config import Config
from agent_swarm.errors import SwarmError
from agent_swarm.images.obtain import obtain
from agent_swarm.paths import Paths
try:
    image = obtain(sys.argv[2], paths=Paths.at(Path(sys.argv[1])), config=Config(),
                   progress=lambda event: print(event, flush=True))
except SwarmError as error:
    print(f"{type(error).__name__}: {error.message}", flush=True)
    sys.exit(1)
print(image.digest)
"""


def raw_disk(*, seed: int = 1, size: int = 3 * MIB) -> bytes:
    """A raw disk with an MBR signature and content that does not compress."""
    content = bytearray(random.Random(seed).randbytes(size))
    content[510:512] = b"\x55\xaa"
    return bytes(content)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths.at(tmp_path / "home")
    found.prepare()
    return found


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as running:
        yield running


def get(source: str, paths: Paths, **options: object) -> Image:
    given: dict[str, object] = {"config": Config(), "progress": ignore, **options}
    return obtain(source, paths=paths, **given)


def nothing_left(paths: Paths) -> bool:
    return list(paths.partial_images.iterdir()) == []


def test_a_raw_file_becomes_a_qcow2_image_with_its_content(paths: Paths, tmp_path: Path) -> None:
    given = tmp_path / "my disk.img"
    given.write_bytes(raw_disk())
    image = get(str(given), paths)
    assert image.name == str(given)
    assert image.firmware is (Firmware.BIOS if image.architecture == "x86_64" else Firmware.UEFI)
    assert not image.has_guest_agent
    assert qcow2.info(image.disk).format == "qcow2"
    assert image.virtual_size_bytes == 3 * MIB
    argv = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(given), str(image.disk)]
    subprocess.run(argv, check=True, timeout=60, capture_output=True)
    assert given.exists()
    assert nothing_left(paths)


def test_a_file_that_did_not_change_is_not_converted_again(paths: Paths, tmp_path: Path) -> None:
    given = tmp_path / "disk.img"
    given.write_bytes(raw_disk())
    first = get(str(given), paths)
    events: list[Event] = []
    assert get(str(given), paths, progress=events.append) == first
    assert events == []
    given.write_bytes(raw_disk(seed=2))
    assert get(str(given), paths).digest != first.digest


def test_refresh_does_the_work_again(paths: Paths, tmp_path: Path) -> None:
    given = tmp_path / "disk.img"
    given.write_bytes(raw_disk())
    first = get(str(given), paths)
    events: list[Event] = []
    assert get(str(given), paths, refresh=True, progress=events.append).digest == first.digest
    assert events


def test_a_pinned_file_is_compared_before_it_is_used(paths: Paths, tmp_path: Path) -> None:
    given = tmp_path / "disk.img"
    given.write_bytes(raw_disk())
    pin = hashlib.sha256(raw_disk()).hexdigest()
    with pytest.raises(ImageError, match="wrong checksum") as caught:
        get(str(given), paths, sha256="0" * 64)
    assert pin in caught.value.details
    assert ImageStore(paths).list() == []
    assert get(str(given), paths, sha256=f"sha256:{pin.upper()}")


def test_an_image_that_is_there_with_another_checksum_does_not_satisfy_a_pin(
    paths: Paths, tmp_path: Path
) -> None:
    given = tmp_path / "disk.img"
    given.write_bytes(raw_disk())
    get(str(given), paths)
    with pytest.raises(ImageError, match="wrong checksum"):
        get(str(given), paths, sha256="0" * 64)


@pytest.mark.parametrize("pin", ["", "abc", "g" * 64])
def test_a_pin_that_is_no_checksum_is_refused(paths: Paths, pin: str) -> None:
    with pytest.raises(UsageError):
        get("/x.img", paths, sha256=pin)


def test_a_pin_on_a_build_is_refused(paths: Paths) -> None:
    with pytest.raises(UsageError, match="no checksum beforehand"):
        get("build:trixie", paths, sha256="0" * 64)


def test_a_missing_file_is_not_found(paths: Paths, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        get(str(tmp_path / "gone.img"), paths)
    assert nothing_left(paths)


def test_a_hostile_image_never_gets_into_the_store(paths: Paths, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(raw_disk())
    hostile = tmp_path / "hostile.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(hostile)]
    subprocess.run(argv, check=True, timeout=60)
    with pytest.raises(ImageError, match="backing file"):
        get(str(hostile), paths)
    assert ImageStore(paths).list() == []
    assert nothing_left(paths)


def test_a_url_is_downloaded_once_and_named_without_its_query(paths: Paths, server: ImageServer) -> None:
    server.files["/disk.img?token=1"] = Served(raw_disk())
    image = get(server.url("/disk.img?token=1"), paths)
    assert image.name == server.url("/disk.img")
    get(server.url("/disk.img?token=1"), paths)
    assert len(server.requests) == 1
    assert nothing_left(paths)


def official(server: ImageServer, content: bytes, listed: bytes) -> Config:
    """A mirror with Debian 13's cloud image for both architectures."""
    sums = ""
    for architecture in ("amd64", "arm64"):
        name = f"debian-13-generic-{architecture}.qcow2"
        server.files[f"/trixie/latest/{name}"] = Served(content)
        sums += f"{hashlib.sha512(listed).hexdigest()}  {name}\n"
    server.files["/trixie/latest/SHA512SUMS"] = Served(sums.encode())
    return Config(images=ImageSettings(debian_mirror=server.url("")))


def test_an_official_image_is_compared_with_its_mirrors_checksums(paths: Paths, server: ImageServer) -> None:
    config = official(server, raw_disk(), raw_disk())
    assert get("debian:13", paths, config=config).name == "debian:13"


def test_an_official_image_with_a_wrong_checksum_is_removed(paths: Paths, server: ImageServer) -> None:
    config = official(server, raw_disk(), raw_disk(seed=2))
    with pytest.raises(ImageError, match="wrong checksum"):
        get("debian:13", paths, config=config)
    assert ImageStore(paths).list() == []
    assert nothing_left(paths)


def test_two_at_once_do_the_work_once(paths: Paths, server: ImageServer) -> None:
    server.files["/disk.img"] = Served(raw_disk())
    got: list[Image] = []
    threads = [
        threading.Thread(target=lambda: got.append(get(server.url("/disk.img"), paths))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(server.requests) == 1
    assert len({image.digest for image in got}) == 1
    assert len(got) == 4


def test_two_refreshes_at_once_do_the_work_once(paths: Paths, server: ImageServer) -> None:
    server.files["/disk.img"] = Served(raw_disk())
    get(server.url("/disk.img"), paths)
    both = threading.Barrier(2)

    def refresh() -> None:
        both.wait(60)
        get(server.url("/disk.img"), paths, refresh=True)

    threads = [threading.Thread(target=refresh) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(server.requests) in (2, 3)  # 3: one had ended before the other asked
    assert len(ImageStore(paths).list()) == 1


def test_a_download_that_was_killed_is_no_image_and_goes_on_in_the_next_process(
    paths: Paths, server: ImageServer
) -> None:
    content = raw_disk(size=4 * MIB)
    server.files["/disk.img"] = Served(content, hang_after=3 * MIB)
    url = server.url("/disk.img")
    argv = [sys.executable, "-c", OBTAIN, str(paths.home), url]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if "Transferred" in line and "done_bytes=0" not in line:
                break
        child.send_signal(signal.SIGKILL)
    store = ImageStore(paths)
    assert store.list() == []
    assert store.problems() == {}
    assert len(store.partials()) == 1

    image = get(url, paths)
    begin = server.requests[1][1]
    assert begin.startswith("bytes=")
    assert int(begin.removeprefix("bytes=").removesuffix("-")) >= MIB
    assert image.virtual_size_bytes == 4 * MIB
    assert nothing_left(paths)


def test_a_download_that_broke_off_is_kept_for_the_next_call_and_gc_can_remove_it(
    paths: Paths, server: ImageServer
) -> None:
    server.files["/disk.img"] = Served(raw_disk())
    server.files["/disk.img"].statuses = [404]
    with pytest.raises(ImageError, match="404"):
        get(server.url("/disk.img"), paths)
    assert nothing_left(paths)
    (paths.partial_images / "url-x").mkdir()
    (paths.partial_images / "url-x" / "download").write_bytes(b"part")
    ImageStore(paths).remove_partials()
    assert nothing_left(paths)


def limited_to(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("limit", [MIB, 5 * MIB])
def test_a_full_disk_is_named_and_leaves_no_image(
    paths: Paths, server: ImageServer, tmp_path: Path, limit: int
) -> None:
    """1 MiB stops the download; 5 MiB lets it pass and stops the conversion to qcow2."""
    small = tmp_path / "small.vmdk"
    whole = tmp_path / "whole.raw"
    whole.write_bytes(b"".join(raw_disk()[:512] + bytes([n]) * (8 * MIB - 512) for n in (1, 2)))
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*argv, str(whole), str(small)], check=True, timeout=60)
    padding = bytes(max(0, 2 * MIB - small.stat().st_size))
    server.files["/disk.img"] = Served(raw_disk() if limit == MIB else small.read_bytes() + padding)
    done = subprocess.run(
        [sys.executable, "-c", OBTAIN, str(paths.home), server.url("/disk.img")],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: limited_to(limit),
    )
    assert done.returncode == 1
    assert "ImageError" in done.stdout
    assert "no space left on the disk" in done.stdout
    store = ImageStore(paths)
    assert store.list() == []
    assert store.problems() == {}
    left = {path.name for partial in store.partials() for path in partial.iterdir()}
    assert left <= {"download", "download.json"}
