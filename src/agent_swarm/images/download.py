"""Downloads that survive interruptions and are checked.

What has arrived is in the target file, with the server's validators in `<target>.json`. A later attempt,
by the same or another process, asks for the rest with Range and If-Range, so that a file that changed
meanwhile comes whole instead of being mixed (RFC 9110, sections 13.1.5 and 14). Redirects are followed,
but never from https to http.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import msgspec

from agent_swarm.errors import ImageError
from agent_swarm.events import Transferred
from agent_swarm.files import write_atomically
from agent_swarm.images import failures
from agent_swarm.images.store import file_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from agent_swarm.events import Progress

STEP = "download"
ATTEMPTS = 5
"""Attempts in a row that may bring nothing new; one that brings something starts the count anew."""
REDIRECTS = 5
CONNECT_S = 20.0
READ_S = 60.0
CHECKSUMS_MAX_BYTES = 4 << 20
CHUNK_BYTES = 256 << 10
REPORT_BYTES = 1 << 20
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_HEX_LENGTH = {"sha256": 64, "sha512": 128}


@dataclass(frozen=True, slots=True)
class Checksum:
    algorithm: str
    hex: str
    origin: str
    """Who says so: "--sha256" or the address of the checksum file."""


class _PartState(msgspec.Struct, frozen=True):
    url: str
    etag: str = ""
    last_modified: str = ""

    @property
    def validator(self) -> str:
        """For If-Range: a strong ETag or a date; a weak ETag is not allowed there."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class _InterruptedError(Exception):
    """The transfer broke off, or the server asked to come back; worth another attempt."""


@dataclass(slots=True)
class Downloader:
    """Fetches files over one connection pool. A context manager.

    `wait` passes the seconds between two attempts.
    """

    subject: str
    progress: Progress
    client: httpx.Client
    wait: Callable[[float], None] = time.sleep

    def __enter__(self) -> Downloader:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def fetch(self, url: str, target: Path, *, checksums: tuple[Checksum, ...] = ()) -> None:
        """Download `url` to `target`, continuing what an earlier call left, and compare its checksums.

        Raises ImageError: what has arrived stays for the next call, except that a file with a wrong
        checksum is removed. Until this returns `target` may be a part of the file.
        """
        state = Path(f"{target}.json")
        try:
            self._fetch_whole(url, target, state)
            for checksum in checksums:
                difference = compare(target, checksum)
                if difference:
                    target.unlink()
                    state.unlink(missing_ok=True)
                    raise _wrong_checksum(url, difference)
        except OSError as error:
            raise failures.write_failed(error, doing=f"downloading {url}", where=target.parent) from error

    def fetch_text(self, url: str) -> str:
        """A small text file, up to 4 MiB. Raises ImageError."""
        content = bytearray()

        def attempt() -> bool:
            content.clear()
            with self._open(url, {}) as response:
                for chunk in response.iter_bytes():
                    content.extend(chunk)
                    if len(content) > CHECKSUMS_MAX_BYTES:
                        message = f"{url} is too large for a list of checksums"
                        raise ImageError(message, hint="Check the mirror's address in the configuration.")
            return False

        self._persist(url, attempt)
        return content.decode("utf-8", "replace")

    def _fetch_whole(self, url: str, target: Path, state: Path) -> None:
        def attempt() -> bool:
            before = target.stat().st_size if target.exists() else 0
            try:
                self._fetch_once(url, target, state)
            except _InterruptedError:
                if target.exists() and target.stat().st_size > before:
                    return True
                raise
            return False

        self._persist(url, attempt)

    def _persist(self, url: str, attempt: Callable[[], bool]) -> None:
        """Repeat `attempt` while it returns True (broke off, but brought something) or was interrupted
        fewer than ATTEMPTS times in a row."""
        failed = 0
        while True:
            try:
                if not attempt():
                    return
                failed = 0
            except _InterruptedError as error:
                failed += 1
                if failed == ATTEMPTS:
                    message = f"{url} could not be downloaded: {ATTEMPTS} attempts failed"
                    hint = "Check the network, then run the same command again: it goes on where it stopped."
                    raise ImageError(message, details=str(error), hint=hint) from error
            self.wait(min(2.0**failed, 30.0))

    def _fetch_once(self, url: str, target: Path, state: Path) -> None:
        known = _load_state(state, url)
        offset = target.stat().st_size if target.exists() and known is not None else 0
        headers = {}
        if offset and known is not None and known.validator:
            headers = {"Range": f"bytes={offset}-", "If-Range": known.validator}
        with self._open(url, headers) as response:
            resumed = response.status_code == 206 and _range_start(response) == offset
            if response.status_code == 206 and not resumed:
                state.unlink(missing_ok=True)  # a range that was not asked for: start anew
                message = "the server sent another part of the file than was asked for"
                raise _InterruptedError(message)
            if response.status_code == 416:
                if response.headers.get("content-range") == f"bytes */{offset}":
                    return  # it was all here
                state.unlink(missing_ok=True)
                message = "the server has less of the file than is here already"
                raise _InterruptedError(message)
            offset = offset if resumed else 0
            length = _content_length(response)
            total = None if length is None else offset + length
            if not resumed:
                target.unlink(missing_ok=True)
                found = _PartState(
                    url, response.headers.get("etag", ""), response.headers.get("last-modified", "")
                )
                write_atomically(state, msgspec.json.encode(found))
            self._require_space(url, target, length)
            self._receive(response, target, offset, total)

    def _receive(self, response: httpx.Response, target: Path, offset: int, total: int | None) -> None:
        """Append the body. A body shorter than its Content-Length is a TransportError to httpx."""
        done, reported = offset, offset
        self.progress(Transferred(self.subject, STEP, done, total))
        with target.open("ab") as stream:
            for chunk in response.iter_raw(CHUNK_BYTES):
                stream.write(chunk)
                done += len(chunk)
                if done - reported >= REPORT_BYTES:
                    stream.flush()  # what is reported survives a kill
                    self.progress(Transferred(self.subject, STEP, done, total))
                    reported = done
        self.progress(Transferred(self.subject, STEP, done, total))

    def _open(self, url: str, headers: dict[str, str]) -> _Opened:
        import httpx

        # stored bytes are what checksums and ranges are about: no content coding
        headers = {**headers, "Accept-Encoding": "identity"}
        where = url
        for _ in range(REDIRECTS + 1):
            try:
                request = self.client.build_request("GET", where, headers=headers)
                response = self.client.send(request, stream=True)
            except httpx.TransportError as error:
                raise _InterruptedError(_say(error)) from error
            except httpx.InvalidURL as error:
                message = f"{where!r} is no valid URL"
                raise ImageError(message, details=str(error)) from error
            if response.is_redirect:
                response.close()
                where = _redirected(where, response.headers["location"])
                continue
            return _Opened(response, where)
        message = f"{url} redirects more than {REDIRECTS} times"
        raise ImageError(message, hint="Give the address that it leads to.")

    def _require_space(self, url: str, target: Path, length: int | None) -> None:
        free = shutil.disk_usage(target.parent).free
        if length is not None and length > free:
            raise failures.disk_full(
                doing=f"downloading {url}",
                where=target.parent,
                details=f"{length} bytes are still to come, {free} are free",
            )


@dataclass(slots=True)
class _Opened:
    """A response whose status was looked at; closes it at the end, and turns errors of reading into ours."""

    response: httpx.Response
    url: str

    def __enter__(self) -> httpx.Response:
        status = self.response.status_code
        if status in (200, 206, 416):
            return self.response
        self.response.close()
        said = f"{self.url} answered {status} {self.response.reason_phrase}".rstrip()
        if status in _RETRIED_STATUS:
            raise _InterruptedError(said)
        raise ImageError(said, hint="Check the address, or the mirror's in the configuration.")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        import httpx

        self.response.close()
        if isinstance(error, httpx.TransportError):
            raise _InterruptedError(_say(error)) from error


def open_downloader(subject: str, progress: Progress) -> Downloader:
    """A Downloader that uses the proxies and certificates of the environment."""
    import httpx

    timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
    headers = {"User-Agent": "agent-swarm"}
    return Downloader(
        subject, progress, httpx.Client(timeout=timeout, headers=headers, follow_redirects=False)
    )


def find_checksum(text: str, file_name: str, *, algorithm: str, origin: str) -> Checksum:
    """The file's line in a SHA256SUMS or SHA512SUMS file, in GNU's or BSD's form. Raises ImageError."""
    length = _HEX_LENGTH[algorithm]
    gnu = re.compile(rf"([0-9a-fA-F]{{{length}}}) [ *](?:\./)?{re.escape(file_name)}")
    bsd = re.compile(rf"{algorithm.upper()} \({re.escape(file_name)}\) = ([0-9a-fA-F]{{{length}}})")
    for line in text.splitlines():
        found = gnu.fullmatch(line.strip()) or bsd.fullmatch(line.strip())
        if found:
            return Checksum(algorithm, found[1].lower(), origin)
    message = f"{origin} has no checksum of {file_name}"
    raise ImageError(message, hint="Check the mirror's address in the configuration.")


def compare(path: Path, checksum: Checksum) -> str:
    """ "" when the file has this checksum, else both sums. Reads it whole; raises OSError."""
    actual = file_digest(path, checksum.algorithm)
    if actual == checksum.hex.lower():
        return ""
    return f"expected {checksum.algorithm} {checksum.hex.lower()} ({checksum.origin})\n  actual {checksum.algorithm} {actual}"


def _wrong_checksum(url: str, difference: str) -> ImageError:
    message = f"the file downloaded from {url} has the wrong checksum and was removed"
    hint = "Try again; if it stays so, the file or its checksum was changed: do not use it."
    return ImageError(message, details=difference, hint=hint)


def _load_state(state: Path, url: str) -> _PartState | None:
    try:
        found = msgspec.json.decode(state.read_bytes(), type=_PartState)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return found if found.url == url else None


def _redirected(where: str, location: str) -> str:
    target = urljoin(where, location)
    scheme = urlsplit(target).scheme
    if scheme not in ("http", "https") or (urlsplit(where).scheme == "https" and scheme != "https"):
        message = f"{where} redirects to {target}, which is not safe to follow"
        raise ImageError(message, hint="Give an https address that stays https.")
    return target


def _range_start(response: httpx.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(found[1]) if found else None


def _content_length(response: httpx.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


def _say(error: Exception) -> str:
    return str(error) or type(error).__name__
