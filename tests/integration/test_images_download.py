"""Downloads over real HTTP from a server that misbehaves on demand."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import httpx
import pytest

from agent_swarm.errors import ImageError
from agent_swarm.events import Event, Transferred
from agent_swarm.images import download
from agent_swarm.images.download import ATTEMPTS, Checksum, Downloader
from tests.support.image_server import ImageServer, Served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = random.Random(1).randbytes(3 << 20)
OTHER = random.Random(2).randbytes(3 << 20)
PATH = "/disk.img"


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as running:
        running.files[PATH] = Served(CONTENT)
        yield running


class Session:
    """A Downloader whose waits and events are collected."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.events: list[Event] = []

    def fetch(self, url: str, target: Path, *checksums: Checksum) -> None:
        client = httpx.Client(timeout=10.0)
        with Downloader("x", self.events.append, client, self.waits.append) as downloader:
            downloader.fetch(url, target, checksums=checksums)

    def fetch_text(self, url: str) -> str:
        with Downloader("x", self.events.append, httpx.Client(timeout=10.0), self.waits.append) as downloader:
            return downloader.fetch_text(url)


@pytest.fixture
def session() -> Session:
    return Session()


def test_a_file_arrives_whole_with_its_size_as_progress(
    server: ImageServer, session: Session, tmp_path: Path
) -> None:
    session.fetch(server.url(PATH), tmp_path / "download")
    assert (tmp_path / "download").read_bytes() == CONTENT
    done = [event for event in session.events if isinstance(event, Transferred)]
    assert done[0].done_bytes == 0
    assert (done[-1].done_bytes, done[-1].total_bytes) == (len(CONTENT), len(CONTENT))
    assert len(done) > 3


def test_a_broken_connection_is_continued_where_it_broke(
    server: ImageServer, session: Session, tmp_path: Path
) -> None:
    server.files[PATH].cut_after = [1 << 20, 512 << 10]
    session.fetch(server.url(PATH), tmp_path / "download")
    assert (tmp_path / "download").read_bytes() == CONTENT
    assert server.requests == [(PATH, ""), (PATH, "bytes=1048576-"), (PATH, "bytes=1572864-")]


def test_a_later_call_continues_what_an_earlier_one_left(
    server: ImageServer, session: Session, tmp_path: Path
) -> None:
    server.files[PATH].cut_after = [1 << 20] + [0] * ATTEMPTS
    with pytest.raises(ImageError) as caught:
        session.fetch(server.url(PATH), tmp_path / "download")
    assert "goes on where it stopped" in caught.value.hint
    server.requests.clear()
    Session().fetch(server.url(PATH), tmp_path / "download")
    assert server.requests == [(PATH, "bytes=1048576-")]
    assert (tmp_path / "download").read_bytes() == CONTENT


def test_a_complete_file_is_not_transferred_again(
    server: ImageServer, session: Session, tmp_path: Path
) -> None:
    session.fetch(server.url(PATH), tmp_path / "download")
    session.fetch(server.url(PATH), tmp_path / "download")
    assert server.requests[1:] == [(PATH, f"bytes={len(CONTENT)}-")]
    assert (tmp_path / "download").read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_sends_the_whole_file_again(
    server: ImageServer, session: Session, tmp_path: Path
) -> None:
    server.files[PATH].cut_after = [1 << 20]
    server.files[PATH].ignore_range = True
    session.fetch(server.url(PATH), tmp_path / "download")
    assert (tmp_path / "download").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_mixed_with_its_old_half(
    server: ImageServer, session: Session, tmp_path: Path
) -> None:
    server.files[PATH].cut_after = [1 << 20] + [0] * ATTEMPTS
    with pytest.raises(ImageError):
        session.fetch(server.url(PATH), tmp_path / "download")
    server.files[PATH] = Served(OTHER, etag='"v2"')
    session.fetch(server.url(PATH), tmp_path / "download")
    assert (tmp_path / "download").read_bytes() == OTHER


@pytest.mark.parametrize("etag", ["", 'W/"v1"'])
def test_without_a_strong_validator_nothing_is_continued(
    server: ImageServer, session: Session, tmp_path: Path, etag: str
) -> None:
    server.files[PATH].etag = etag
    server.files[PATH].cut_after = [1 << 20]
    session.fetch(server.url(PATH), tmp_path / "download")
    assert server.requests == [(PATH, ""), (PATH, "")]
    assert (tmp_path / "download").read_bytes() == CONTENT


def test_the_part_of_another_address_is_not_continued(
    server: ImageServer, session: Session, tmp_path: Path
) -> None:
    server.files[PATH].cut_after = [1 << 20] + [0] * ATTEMPTS
    with pytest.raises(ImageError):
        session.fetch(server.url(PATH), tmp_path / "download")
    server.files["/other.img"] = Served(OTHER)
    session.fetch(server.url("/other.img"), tmp_path / "download")
    assert (tmp_path / "download").read_bytes() == OTHER


def test_a_busy_server_is_asked_again_with_growing_pauses(
    server: ImageServer, session: Session, tmp_path: Path
) -> None:
    server.files[PATH].statuses = [503, 429, 500]
    session.fetch(server.url(PATH), tmp_path / "download")
    assert (tmp_path / "download").read_bytes() == CONTENT
    assert session.waits == [2.0, 4.0, 8.0]


def test_a_server_that_stays_busy_is_given_up(server: ImageServer, session: Session, tmp_path: Path) -> None:
    server.files[PATH].statuses = [503] * 50
    with pytest.raises(ImageError, match=f"{ATTEMPTS} attempts failed") as caught:
        session.fetch(server.url(PATH), tmp_path / "download")
    assert "503" in caught.value.details
    assert len(server.requests) == ATTEMPTS


def test_a_missing_file_is_reported_at_once(server: ImageServer, session: Session, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="404") as caught:
        session.fetch(server.url("/gone.img"), tmp_path / "download")
    assert caught.value.hint
    assert len(server.requests) == 1
    assert not (tmp_path / "download").exists()


def test_an_unreachable_server_is_an_image_error(session: Session, tmp_path: Path) -> None:
    with ImageServer() as closed:
        url = closed.url(PATH)
    with pytest.raises(ImageError, match="could not be downloaded"):
        session.fetch(url, tmp_path / "download")


def test_a_wrong_checksum_removes_the_file_and_shows_both_sums(
    server: ImageServer, session: Session, tmp_path: Path
) -> None:
    wanted = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(ImageError, match="wrong checksum") as caught:
        session.fetch(server.url(PATH), tmp_path / "download", Checksum("sha256", wanted, "--sha256"))
    assert wanted in caught.value.details
    assert hashlib.sha256(CONTENT).hexdigest() in caught.value.details
    assert list(tmp_path.iterdir()) == []


def test_every_checksum_is_compared(server: ImageServer, session: Session, tmp_path: Path) -> None:
    right = Checksum("sha512", hashlib.sha512(CONTENT).hexdigest().upper(), "SHA512SUMS")
    session.fetch(server.url(PATH), tmp_path / "download", right)
    with pytest.raises(ImageError):
        session.fetch(server.url(PATH), tmp_path / "download", right, Checksum("sha256", "0" * 64, "pin"))


def test_a_redirect_is_followed(server: ImageServer, session: Session, tmp_path: Path) -> None:
    server.files["/latest"] = Served(b"", redirect=PATH)
    session.fetch(server.url("/latest"), tmp_path / "download")
    assert (tmp_path / "download").read_bytes() == CONTENT


def test_redirects_in_a_circle_end(server: ImageServer, session: Session, tmp_path: Path) -> None:
    server.files["/a"] = Served(b"", redirect="/a")
    with pytest.raises(ImageError, match="redirects more than"):
        session.fetch(server.url("/a"), tmp_path / "download")


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_away_from_the_web_is_refused(
    server: ImageServer, session: Session, tmp_path: Path, location: str
) -> None:
    server.files["/a"] = Served(b"", redirect=location)
    with pytest.raises(ImageError, match="not safe to follow"):
        session.fetch(server.url("/a"), tmp_path / "download")


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path, session: Session) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"location": "http://mirror.example/disk.img"})

    client = httpx.Client(transport=httpx.MockTransport(answer))
    with (
        Downloader("x", session.events.append, client, session.waits.append) as downloader,
        pytest.raises(ImageError, match="not safe to follow"),
    ):
        downloader.fetch("https://mirror.example/disk.img", tmp_path / "download")


def test_a_list_of_checksums_without_end_is_refused(server: ImageServer, session: Session) -> None:
    server.files["/SHA256SUMS"] = Served(bytes(download.CHECKSUMS_MAX_BYTES + 1))
    with pytest.raises(ImageError, match="too large"):
        session.fetch_text(server.url("/SHA256SUMS"))


SUM = "ab" * 32


@pytest.mark.parametrize(
    "line",
    [f"{SUM}  disk.img", f"{SUM} *disk.img", f"{SUM.upper()}  ./disk.img", f"SHA256 (disk.img) = {SUM}"],
)
def test_a_checksum_is_found_in_every_usual_form(line: str) -> None:
    text = f"{'0' * 64}  not-disk.img\n{line}\n{'1' * 64}  disk.img.xz\n"
    assert download.find_checksum(text, "disk.img", algorithm="sha256", origin="sums").hex == SUM


@pytest.mark.parametrize("text", ["", "<html>", f"{SUM}  other.img", "abcd  disk.img", f"{SUM}  diskXimg"])
def test_a_list_without_the_file_is_an_error(text: str) -> None:
    with pytest.raises(ImageError, match=r"no checksum of disk\.img"):
        download.find_checksum(text, "disk.img", algorithm="sha256", origin="sums")
