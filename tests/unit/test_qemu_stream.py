"""Migration streams, put together by hand from the format's description, and what the splitter makes of them."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_swarm.errors import MachineError
from agent_swarm.providers.qemu import stream
from agent_swarm.providers.qemu.stream import Splitter

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 4096
FILLED, SIZES, WHOLE, END, SAME = 0x02, 0x04, 0x08, 0x10, 0x20
HEAD = b"QEVM" + (3).to_bytes(4, "big") + b"\x07" + (11).to_bytes(4, "big") + b"pc-q35-test"
RAM = (1).to_bytes(4, "big")
START = b"\x01" + RAM + b"\x03ram" + (0).to_bytes(4, "big") + (4).to_bytes(4, "big")
PART, LAST, FOOTER = b"\x02" + RAM, b"\x03" + RAM, b"\x7e" + RAM
END_OF_SECTION = END.to_bytes(8, "big")
COMMAND = b"\x08" + (3).to_bytes(2, "big") + (5).to_bytes(2, "big") + b"hello"
DEVICES = b"\x04\0\0\0\x02\x05timer" + bytes(range(256)) * 5 + b"\0\x06\0\0\0\x02{}"


def sizes(**blocks: int) -> bytes:
    """The list of blocks, sizes in bytes."""
    listed = b"".join(
        bytes([len(name)]) + name.encode() + size.to_bytes(8, "big") for name, size in blocks.items()
    )
    return (sum(blocks.values()) | SIZES).to_bytes(8, "big") + listed


def record(number: int, flags: int, block: str | None, content: bytes) -> bytes:
    """A page's record; `block` None: the same as the record before."""
    word = (number * PAGE | flags | (SAME if block is None else 0)).to_bytes(8, "big")
    return word + (b"" if block is None else bytes([len(block)]) + block.encode()) + content


def page(number: int, content: int | bytes, block: str | None = "ram0") -> bytes:
    whole = bytes([content]) * PAGE if isinstance(content, int) else content
    return record(number, WHOLE, block, whole)


def filled(number: int, byte: int, block: str | None = "ram0") -> bytes:
    return record(number, FILLED, block, bytes([byte]))


def parts(*sections: bytes, pages: int, before: bytes = b"", last: bytes = b"", **others: int) -> list[bytes]:
    """A whole stream: the start section lists the blocks, `sections` come as parts, `last` in the end section."""
    found = [HEAD, START, sizes(ram0=pages * PAGE, **others), END_OF_SECTION, FOOTER]
    for section in sections:
        found += [before, PART, section, END_OF_SECTION, FOOTER]
    return [*found, LAST, last, END_OF_SECTION, FOOTER, DEVICES]


def whole(*sections: bytes, **how: object) -> bytes:
    return b"".join(parts(*sections, **how))  # type: ignore[arg-type] # `how` is passed on as it is


@dataclass
class Trickle:
    """A connection that gives at most `limit` bytes at a time; as many as there is room for with MSG_WAITALL."""

    connection: socket.socket
    limit: int
    flags: int

    def recv_into(self, view: memoryview) -> int:
        return self.connection.recv_into(view, min(len(view), self.limit), self.flags)


@dataclass
class Split:
    """What came of a stream."""

    memory: Path
    rest: bytes

    def page(self, number: int) -> bytes:
        return self.memory.read_bytes()[number * PAGE : (number + 1) * PAGE]

    @property
    def taken_bytes(self) -> int:
        return self.memory.stat().st_blocks * 512


def split(
    folder: Path, data: bytes, *, pages: int, limit: int = 1 << 30, flags: int = 0, rest: str = "state"
) -> Split:
    """Send a stream through a socket and take it apart."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        with theirs, contextlib.suppress(OSError):  # the receiver may hang up
            theirs.sendall(data)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with (
            ours,
            (folder / "memory").open("wb", buffering=0) as memory,
            (folder / rest).open("wb") as state,
        ):
            connection = Trickle(ours, limit, flags)
            splitter = Splitter(
                connection,  # type: ignore[arg-type] # a stand-in for a socket
                memory.fileno(),
                state,
                block="ram0",
                size_bytes=pages * PAGE,
            )
            splitter.run()
    finally:
        sender.join(30)
    return Split(folder / "memory", (folder / rest).read_bytes())


# Pages


def test_pages_are_where_their_addresses_say_in_whatever_order_they_come(tmp_path):
    order = [3, 4, 5, 1, 7, 6, 0]
    done = split(tmp_path, whole(b"".join(page(number, number + 1) for number in order), pages=9), pages=9)
    assert [done.page(number)[:1] for number in range(9)] == [
        bytes([number + 1]) if number in order else b"\0" for number in range(9)
    ]
    assert done.memory.stat().st_size == 9 * PAGE


def test_a_page_is_copied_byte_by_byte(tmp_path):
    content = os.urandom(PAGE)
    assert split(tmp_path, whole(page(1, content), pages=3), pages=3).page(1) == content


def test_the_last_of_several_contents_of_a_page_counts(tmp_path):
    sections = page(1, 1) + page(1, 2) + page(2, 3), page(1, 4) + page(2, 5), filled(2, 6, None)
    done = split(tmp_path, whole(*sections, last=page(0, 7, None) + page(0, 8), pages=3), pages=3)
    assert [done.page(number) for number in range(3)] == [bytes([byte]) * PAGE for byte in (8, 4, 6)]


def test_the_same_block_is_that_of_the_section_before(tmp_path):
    sections = page(0, 1) + page(1, 2, None), page(2, 3, None), page(5, 4, "vga"), page(3, 5, None)
    done = split(tmp_path, whole(*sections, last=page(4, 6), pages=6, vga=8 * PAGE), pages=6)
    assert [done.page(number)[0] for number in range(6)] == [1, 2, 3, 0, 6, 0]
    assert page(3, 5, "vga") in done.rest


def test_pages_that_are_zero_are_holes(tmp_path):
    pages = 2048
    zeros = filled(0, 0) + b"".join(filled(number, 0, None) for number in range(1, pages))
    done = split(tmp_path, whole(zeros, page(1000, 9), pages=pages), pages=pages)
    assert done.memory.stat().st_size == pages * PAGE
    assert done.taken_bytes <= 64 << 10
    assert done.page(1000) == b"\x09" * PAGE


def test_a_page_that_becomes_zero_is_zero_in_the_file(tmp_path):
    sections = page(1, 1) + page(2, 2) + filled(1, 0), filled(2, 0, None) + page(3, 3, None)
    done = split(tmp_path, whole(*sections, pages=4), pages=4)
    assert [done.page(number) for number in (1, 2)] == [bytes(PAGE)] * 2
    assert done.page(3) == b"\x03" * PAGE


def test_a_page_may_be_filled_with_any_byte(tmp_path):
    sections = (filled(0, 0xFF) + page(1, 2, None) + filled(2, 0x80, None),)
    done = split(tmp_path, whole(*sections, pages=3), pages=3)
    assert done.memory.read_bytes() == b"\xff" * PAGE + b"\2" * PAGE + b"\x80" * PAGE


def test_a_write_that_the_system_cuts_short_is_finished(tmp_path, monkeypatch):
    def short(descriptor, views, offset):
        return os.pwrite(descriptor, b"".join(views)[:5000], offset)

    monkeypatch.setattr(stream.os, "pwritev", short)
    data = os.urandom(4 * PAGE)
    section = b"".join(page(number, data[number * PAGE :][:PAGE]) for number in range(4))
    assert split(tmp_path, whole(section, pages=4), pages=4).memory.read_bytes() == data


# The rest


def test_the_rest_is_the_stream_without_the_pages_of_the_memory(tmp_path):
    sections = page(0, 1) + filled(1, 2, None), page(2, 3)
    done = split(tmp_path, whole(*sections, last=filled(0, 0), pages=4), pages=4)
    assert done.rest == whole(b"", b"", pages=4)


def test_records_of_other_blocks_stay_with_their_name(tmp_path):
    sections = (
        page(7, 1, "vga") + page(0, 2) + page(1, 3, None),
        page(8, 4, "vga") + filled(9, 5, None) + page(2, 6) + filled(1, 0, "rom") + page(2, 7, None),
        page(3, 8, None),
    )
    blocks = {"vga": 16 * PAGE, "rom": 4 * PAGE}
    done = split(tmp_path, whole(*sections, pages=4, **blocks), pages=4)
    kept = (
        page(7, 1, "vga"),
        page(8, 4, "vga") + filled(9, 5, "vga") + filled(1, 0, "rom") + page(2, 7, "rom"),
        page(3, 8, "rom"),
    )
    assert done.rest == whole(*kept, pages=4, **blocks)
    assert done.page(3) == bytes(PAGE)


def test_what_comes_after_the_end_section_is_kept_as_it_is(tmp_path):
    tail = os.urandom(9 << 20) + whole(
        page(0, 1), pages=1
    )  # larger than the buffer, and with what looks like memory
    done = split(tmp_path, whole(page(0, 2), pages=1) + tail, pages=1)
    assert done.rest == whole(b"", pages=1) + tail
    assert done.page(0) == b"\2" * PAGE


def test_commands_between_sections_are_kept(tmp_path):
    sections = page(0, 1), page(1, 2, None)
    done = split(tmp_path, whole(*sections, before=COMMAND, pages=2), pages=2)
    assert done.rest == whole(b"", b"", before=COMMAND, pages=2)
    assert done.memory.read_bytes() == b"\1" * PAGE + b"\2" * PAGE


def test_sections_before_the_memory_are_kept(tmp_path):
    early = b"\x04\0\0\0\x09\x05early" + bytes(12) + os.urandom(3000) + b"\x7e\0\0\0\x09"
    data = whole(page(0, 1), pages=1).replace(HEAD, HEAD + early, 1)
    assert split(tmp_path, data, pages=1).rest == whole(b"", pages=1).replace(HEAD, HEAD + early, 1)


# The buffer


@pytest.mark.parametrize("flags", [0, socket.MSG_WAITALL], ids=["as it comes", "full"])
def test_records_that_lie_across_the_buffers_end_are_whole(tmp_path, flags):
    pages = 2600  # 10 MiB; the records' length makes every buffer end at another place of one
    data = os.urandom(pages * PAGE)
    contents = [data[number * PAGE : (number + 1) * PAGE] for number in range(pages)]
    section = b"".join(
        page(number, content, "ram0" if number % 3 else None)
        for number, content in enumerate(contents)
        if number
    )
    done = split(tmp_path, whole(page(0, contents[0]) + section, pages=pages), pages=pages, flags=flags)
    assert done.memory.read_bytes() == data
    assert done.rest == whole(b"", pages=pages)


@pytest.mark.parametrize("limit", [1, 7, 100, 4097])
def test_a_stream_that_comes_in_small_pieces_is_the_same(tmp_path, limit):
    sections = page(0, 1) + filled(1, 0, None) + page(3, 2, "vga"), page(2, 3)
    done = split(tmp_path, whole(*sections, before=COMMAND, pages=3, vga=4 * PAGE), pages=3, limit=limit)
    assert done.memory.read_bytes() == b"\1" * PAGE + bytes(PAGE) + b"\3" * PAGE
    assert done.rest == whole(page(3, 2, "vga"), b"", before=COMMAND, pages=3, vga=4 * PAGE)


# Streams that are none


def test_a_stream_that_is_cut_off_anywhere_before_the_devices_is_an_error(tmp_path):
    sections = page(0, 1) + filled(1, 3, None) + page(1, 2, "vga"), filled(2, 0) + page(1, 5, None)
    found = parts(*sections, before=COMMAND, last=page(2, 4), pages=3, vga=4 * PAGE)
    at, places = 0, set()
    for part in found[:-1]:
        places.update(range(at, at + min(len(part), 24)))
        places.update({at + len(part) // 2, at + len(part) - 1} if part else ())
        at += len(part)
    places.update(range(at - 40, at))
    data = b"".join(found)
    for place in sorted(places):
        with pytest.raises(MachineError):
            split(tmp_path, data[:place], pages=3)
    assert split(tmp_path, data, pages=3).page(1) == b"\5" * PAGE


@pytest.mark.parametrize(
    "flags",
    [0, 0x01, 0x40, 0x80, 0x100, 0x200, WHOLE | FILLED, WHOLE | 0x100, 0x800],
    ids=hex,
)
def test_a_record_with_other_flags_is_an_error(tmp_path, flags):
    odd = record(0, flags, "ram0", bytes(PAGE))
    with pytest.raises(MachineError, match="not known"):
        split(tmp_path, whole(odd, pages=1), pages=1)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"QEVM", b"QEVN"),
        (b"QEVM\0\0\0\3", b"QEVM\0\0\0\4"),
        (START, START.replace(b"ram", b"rom")),
        (START, START[:-1] + b"\5"),
        (START, b"\4" + START[1:]),
        (PART, b"\2\0\0\0\7"),
        (PART, b"\1" + RAM),
        (PART, b"\xff" + RAM),
        (FOOTER, b"\x7f" + RAM),
        (FOOTER, b"\x7e\0\0\0\7"),
    ],
    ids=["magic", "version", "name", "memory", "start", "other", "kind", "nonsense", "footer", "footers"],
)
def test_a_stream_of_another_form_is_an_error(tmp_path, good, bad):
    data = whole(page(0, 1), pages=1)
    assert good in data
    with pytest.raises(MachineError, match="not known"):
        split(tmp_path, data.replace(good, bad, 1), pages=1)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"QEVM", os.urandom(200_000)], ids=["none", "x", "head", "noise"]
)
def test_what_is_no_stream_is_an_error(tmp_path, data):
    with pytest.raises(MachineError):
        split(tmp_path, data, pages=1)


@pytest.mark.parametrize(
    "listed",
    [sizes(ram0=PAGE), sizes(ram0=4 * PAGE), sizes(ram1=2 * PAGE), sizes()],
    ids=["small", "large", "other", "none"],
)
def test_a_memory_of_another_size_is_an_error(tmp_path, listed):
    data = whole(page(0, 1), pages=2).replace(sizes(ram0=2 * PAGE), listed, 1)
    with pytest.raises(MachineError, match="bytes of memory"):
        split(tmp_path, data, pages=2)


def test_blocks_that_do_not_add_up_are_an_error(tmp_path):
    listed = sizes(ram0=2 * PAGE, vga=PAGE)
    short = (2 * PAGE + 1024 * 4 | SIZES).to_bytes(8, "big") + listed[8:].replace(
        PAGE.to_bytes(8, "big"), (2 * PAGE).to_bytes(8, "big"), 1
    )
    data = whole(page(0, 1), pages=2).replace(sizes(ram0=2 * PAGE), short, 1)
    with pytest.raises(MachineError):
        split(tmp_path, data, pages=2)


@pytest.mark.parametrize(
    "odd",
    [page(2, 1), filled(2, 1), filled(2, 0), filled(1 << 40, 0)],
    ids=["page", "filled", "zero", "far"],
)
def test_a_page_beyond_the_memory_is_an_error(tmp_path, odd):
    with pytest.raises(MachineError, match="beyond"):
        split(tmp_path, whole(odd, pages=2), pages=2)


# Files that cannot be written


def test_a_memory_file_that_cannot_be_so_large_is_an_error_of_the_system(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            split(tmp_path, whole(page(0, 1), pages=64), pages=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


@pytest.mark.needs("/dev/full")
def test_a_disk_that_is_full_for_the_rest_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        split(tmp_path, whole(page(0, 1), pages=2), pages=2, rest="/dev/full")


@pytest.mark.needs("/dev/full")
def test_a_disk_that_is_full_for_a_page_is_an_error_of_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(stream.os, "ftruncate", lambda *_: None)  # the file is there; its pages have no room
    (tmp_path / "memory").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        split(tmp_path, whole(page(0, 1), pages=2), pages=2)


# All of it

PAGES = 6
BLOCKS = ("ram0", "vga")
WRITES = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from([WHOLE, FILLED]),
            st.sampled_from(BLOCKS),
            st.integers(0, PAGES - 1),
            st.sampled_from([0, 0, 1, 2, 255]),
            st.booleans(),
        ),
        st.sampled_from(["section", "command"]),
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(writes=WRITES, limit=st.sampled_from([3, 1000, 5000, 1 << 30]))
def test_any_sequence_of_writes_comes_to_the_memory_that_it_describes(tmp_path, writes, limit):
    model, current = bytearray(PAGES * PAGE), ""
    start = HEAD + START + sizes(ram0=PAGES * PAGE, vga=PAGES * PAGE)
    sent, kept = start, start
    for write in [*writes, "section"]:
        if isinstance(write, str):
            between = END_OF_SECTION + FOOTER + (COMMAND if write == "command" else b"") + PART
            sent, kept = sent + between, kept + between
            continue
        flags, block, number, byte, names = write
        content = bytes([byte]) * (PAGE if flags == WHOLE else 1)
        sent += record(number, flags, None if block == current and not names else block, content)
        current = block
        if block == "ram0":
            model[number * PAGE : (number + 1) * PAGE] = bytes([byte]) * PAGE
        else:
            kept += record(number, flags, block, content)
    end = END_OF_SECTION + FOOTER + LAST + END_OF_SECTION + FOOTER + DEVICES
    done = split(tmp_path, sent + end, pages=PAGES, limit=limit)
    assert done.memory.read_bytes() == model
    assert done.rest == kept + end
