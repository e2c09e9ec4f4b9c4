from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from agent_swarm import locks
from agent_swarm.errors import ImageError, NotFoundError
from agent_swarm.images.store import Description, ImageStore, Origin
from agent_swarm.model import Firmware, Image, ImageDigest
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

BOOT_FILES = {"kernel": b"kernel", "initrd": b"initrd"}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    paths = Paths.at(tmp_path / "home")
    paths.prepare()
    return ImageStore(paths)


def publish(
    store: ImageStore,
    content: bytes,
    *,
    name: str = "ubuntu:24.04",
    key: str = "key-1",
    boot_files: dict[str, bytes] | None = None,
) -> Image:
    directory = store.paths.partial_images / key
    directory.mkdir(exist_ok=True)
    for file, text in {"disk.qcow2": content, **(boot_files or {})}.items():
        (directory / file).write_bytes(text)
    description = Description(
        origin=Origin(name, key),
        architecture="x86_64",
        firmware=Firmware.DIRECT if boot_files else Firmware.BIOS,
        kernel_command_line="root=LABEL=x" if boot_files else "",
        virtual_size_bytes=1 << 30,
        has_guest_agent=bool(boot_files),
    )
    return store.publish(directory, description)


def manifest_of(image: Image) -> Path:
    return image.disk.parent / "manifest.json"


def test_an_image_is_named_by_its_content_and_read_back_as_it_was_published(store: ImageStore) -> None:
    image = publish(store, b"disk", boot_files=BOOT_FILES)
    assert image.digest == hashlib.sha256(b"disk").hexdigest()
    assert store.list() == [image]
    assert store.get(image.digest) == image
    assert image.kernel is not None
    assert image.kernel.read_bytes() == b"kernel"
    assert image.size_bytes == len(b"disk" + b"kernel" + b"initrd")


def test_an_image_is_private_and_read_only(store: ImageStore) -> None:
    image = publish(store, b"disk")
    assert image.disk.stat().st_mode & 0o777 == 0o400
    assert image.disk.parent.stat().st_mode & 0o777 == 0o700
    assert manifest_of(image).stat().st_mode & 0o777 == 0o600


def test_the_newest_image_comes_first(store: ImageStore) -> None:
    first = publish(store, b"one")
    second = publish(store, b"two")
    assert store.list() == [second, first]
    assert store.newest() == second


def test_no_image_at_all_is_an_empty_list(tmp_path: Path) -> None:
    store = ImageStore(Paths.at(tmp_path / "never-made"))
    assert store.list() == []
    assert store.newest() is None
    assert store.partials() == []


def test_an_image_is_found_by_name_digest_and_unique_prefix(store: ImageStore) -> None:
    image = publish(store, b"disk", name="debian:13")
    for reference in ("debian:13", image.digest, image.digest[:6]):
        assert store.find(reference) == image


@pytest.mark.parametrize("reference", ["debian:12", "abcdef", "", "1ec7"])
def test_an_unknown_reference_is_answered_with_the_command_that_makes_images(
    store: ImageStore, reference: str
) -> None:
    publish(store, b"disk")
    with pytest.raises(NotFoundError) as caught:
        store.find(reference)
    assert "init-base" in caught.value.hint


def test_of_two_images_with_one_name_the_newest_is_found(store: ImageStore) -> None:
    publish(store, b"old", name="debian:13")
    newer = publish(store, b"new", name="debian:13")
    assert store.find("debian:13") == newer


def test_the_same_content_from_another_source_is_one_image_with_both_names(store: ImageStore) -> None:
    publish(store, b"disk", name="debian:13", key="a")
    second = publish(store, b"disk", name="/srv/disk.img", key="b")
    assert store.list() == [second]
    assert store.find("debian:13").digest == store.find("/srv/disk.img").digest == second.digest
    for key in ("a", "b"):
        assert store.find_origin(key) is not None
    assert store.partials() == []


def test_a_damaged_image_of_the_same_content_is_replaced(store: ImageStore) -> None:
    image = publish(store, b"disk")
    image.disk.chmod(0o600)
    image.disk.write_bytes(b"cut")
    assert [publish(store, b"disk")] == store.list()
    assert store.problems() == {}
    assert list(store.paths.partial_images.iterdir()) == []


@pytest.mark.parametrize(
    "damage", ["no manifest", "no disk", "short disk", "not json", "unknown field", "newer"]
)
def test_a_damaged_image_is_a_problem_and_no_image(store: ImageStore, damage: str) -> None:
    image = publish(store, b"disk")
    whole = publish(store, b"another")
    manifest = manifest_of(image)
    image.disk.chmod(0o600)
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "no disk":
        image.disk.unlink()
    elif damage == "short disk":
        image.disk.write_bytes(b"dis")
    elif damage == "not json":
        manifest.write_bytes(b"\xff{")
    elif damage == "unknown field":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "surprise": 1}))
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    assert store.list() == [whole]
    assert list(store.problems()) == [image.digest]
    with pytest.raises(ImageError):
        store.get(image.digest)


def test_a_manifest_without_the_kernel_of_a_direct_boot_is_a_problem(store: ImageStore) -> None:
    image = publish(store, b"disk", boot_files=BOOT_FILES)
    manifest = json.loads(manifest_of(image).read_text())
    del manifest["files"]["kernel"], manifest["sizes"]["kernel"]
    manifest_of(image).write_text(json.dumps(manifest))
    assert store.list() == []


def test_a_missing_image_is_said_to_be_missing(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="base image 000000000000 is missing") as caught:
        store.get(ImageDigest("0" * 64))
    assert caught.value.hint


def test_what_is_in_the_making_is_no_image(store: ImageStore) -> None:
    image = publish(store, b"disk")
    half = store.paths.partial_images / "half"
    image.disk.parent.rename(half)
    assert store.list() == []
    assert store.problems() == {}


def test_other_entries_in_the_directory_are_ignored(store: ImageStore) -> None:
    (store.paths.images / "notes.txt").write_text("mine")
    (store.paths.images / ("A" * 64)).mkdir()
    assert store.list() == []
    assert store.problems() == {}


def test_a_removed_image_is_gone_and_removing_it_again_is_silent(store: ImageStore) -> None:
    image = publish(store, b"disk")
    store.remove(image.digest)
    store.remove(image.digest)
    assert store.list() == []
    assert not image.disk.exists()


def test_a_damaged_image_can_be_removed(store: ImageStore) -> None:
    image = publish(store, b"disk")
    manifest_of(image).unlink()
    store.remove(image.digest)
    assert store.problems() == {}


def test_verify_finds_a_changed_byte_that_the_size_does_not_show(store: ImageStore) -> None:
    image = publish(store, b"disk", boot_files=BOOT_FILES)
    store.verify(image)
    assert image.initrd is not None
    image.initrd.chmod(0o600)
    image.initrd.write_bytes(b"Initrd")
    assert store.list() == [image]
    with pytest.raises(ImageError, match="initrd has changed") as caught:
        store.verify(image)
    assert image.name in caught.value.hint


def test_verify_does_not_trust_a_manifest_that_was_changed_with_the_disk(store: ImageStore) -> None:
    image = publish(store, b"disk")
    other = publish(store, b"DISK", key="other")
    image.disk.chmod(0o600)
    image.disk.write_bytes(b"DISK")
    manifest_of(image).write_bytes(manifest_of(other).read_bytes())
    with pytest.raises(ImageError, match="has changed"):
        store.verify(image)


def test_leftovers_are_removed_unless_somebody_works_on_them(store: ImageStore) -> None:
    abandoned, busy = store.paths.partial_images / "abandoned", store.paths.partial_images / "busy"
    for directory in (abandoned, busy):
        directory.mkdir()
        (directory / "download.part").write_bytes(b"half")
    with locks.hold(store.paths.lock("image-busy"), busy=""):
        assert store.partials() == [abandoned]
        assert store.remove_partials() == [abandoned]
    assert busy.is_dir()
    assert not abandoned.exists()
