from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_swarm.config import ImageSettings
from agent_swarm.errors import UsageError
from agent_swarm.images import sources
from agent_swarm.images.recipe import Recipe
from agent_swarm.images.sources import BuildSource, FileSource, OfficialSource, Source, UrlSource

if TYPE_CHECKING:
    from pathlib import Path


def parse(text: str, *, architecture: str = "x86_64", can_build: bool = True, **settings: str) -> Source:
    return sources.parse(
        text, settings=ImageSettings(**settings), architecture=architecture, can_build=can_build
    )


def test_auto_builds_where_mmdebstrap_is_installed() -> None:
    assert parse("auto", can_build=True) == BuildSource("build:trixie", Recipe("trixie", "x86_64"))


def test_auto_downloads_debian_elsewhere() -> None:
    assert parse("auto", can_build=False).name == "debian:13"


@pytest.mark.parametrize(
    ("text", "architecture", "url", "checksums"),
    [
        (
            "debian:13",
            "x86_64",
            "https://cloud.debian.org/images/cloud/trixie/latest/debian-13-generic-amd64.qcow2",
            "https://cloud.debian.org/images/cloud/trixie/latest/SHA512SUMS",
        ),
        (
            "debian:12",
            "aarch64",
            "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-generic-arm64.qcow2",
            "https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS",
        ),
        (
            "ubuntu:24.04",
            "aarch64",
            "https://cloud-images.ubuntu.com/releases/24.04/release/ubuntu-24.04-server-cloudimg-arm64.img",
            "https://cloud-images.ubuntu.com/releases/24.04/release/SHA256SUMS",
        ),
    ],
)
def test_official_images_are_named_as_their_distributions_name_them(
    text: str, architecture: str, url: str, checksums: str
) -> None:
    source = parse(text, architecture=architecture)
    assert isinstance(source, OfficialSource)
    assert (source.url, source.checksums_url) == (url, checksums)


def test_the_mirror_is_configurable_with_or_without_a_final_slash() -> None:
    for mirror in ("http://mirror.example/debian", "http://mirror.example/debian/"):
        source = parse("debian:13", debian_mirror=mirror)
        assert isinstance(source, OfficialSource)
        assert source.url == "http://mirror.example/debian/trixie/latest/debian-13-generic-amd64.qcow2"


def test_the_package_mirror_is_part_of_a_build() -> None:
    source = parse("build:bookworm", package_mirror="http://mirror.example/debian")
    assert isinstance(source, BuildSource)
    assert source.recipe.mirror == "http://mirror.example/debian"


def test_a_path_is_a_file_whether_or_not_it_exists(tmp_path: Path) -> None:
    assert parse(f"{tmp_path}/x.img") == FileSource(f"{tmp_path}/x.img", tmp_path / "x.img")


def test_a_bare_word_is_a_file_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.img").touch()
    assert parse("disk.img") == FileSource(str(tmp_path / "disk.img"), tmp_path / "disk.img")


def test_a_file_url_is_a_path_with_its_escapes_undone() -> None:
    source = parse("file:///srv/my%20disk.img")
    assert isinstance(source, FileSource)
    assert str(source.path) == "/srv/my disk.img"


def test_the_query_of_a_url_stays_out_of_the_name() -> None:
    assert parse("https://h.example/i.qcow2?token=abc#x") == UrlSource(
        "https://h.example/i.qcow2", "https://h.example/i.qcow2?token=abc#x"
    )


@pytest.mark.parametrize(
    ("text", "near"),
    [("ubunut:24.04", "ubuntu:24.04"), ("debian:1", "debian:13"), ("build:trixi", "build:trixie")],
)
def test_an_unknown_source_is_answered_with_the_nearest_and_all_there_are(text: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert f"Did you mean {near!r}?" in caught.value.hint
    assert "build:bookworm" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "~no-such-user/x.img",
        "a/b\0c",
        "",
        "nonsense",
        "ftp://h.example/x",
        "https://",
        "http://h:99999/x",
        "file://other/x",
        "debian:",
    ],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        parse("https://me:hunter2@h.example/x.qcow2")
    assert "hunter2" not in caught.value.message + caught.value.hint + caught.value.details


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(UsageError, match="riscv64"):
        parse("auto", architecture="riscv64")


@given(st.text(max_size=40))
def test_any_text_is_a_source_or_a_clean_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse(text).name


def test_a_key_can_be_a_file_name(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    for text in ("build:trixie", "debian:13", "https://h.example/a?b=/c", str(tmp_path / "x")):
        assert "/" not in sources.key(parse(text))


def test_a_changed_recipe_has_another_key() -> None:
    assert sources.key(parse("build:trixie")) != sources.key(parse("build:trixie", package_mirror="http://x"))
    assert sources.key(parse("build:trixie")) != sources.key(parse("build:bookworm"))


def test_a_changed_file_has_another_key(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    before = sources.key(parse(str(path)))
    assert sources.key(parse(str(path))) == before
    path.write_bytes(b"another")
    assert sources.key(parse(str(path))) != before
