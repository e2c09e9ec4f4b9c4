"""QEMU's migration stream, split as it comes: the pages of the guest's memory into one file, all else into another.

The rest is a migration stream of its own, in which those pages just do not occur. A QEMU whose memory is mapped from
the first file loads it, and takes the memory as it finds it.

What is known of the format, all numbers big-endian:

    stream    "QEVM", version 3; configuration; sections; 0; a description of the devices
    section   1 start, 2 part, 3 end, 4 full: section's id (4 bytes); for 1 and 4 also its name (a length byte before
              it), instance and version (4 bytes each); its content; 0x7e and the id again
    memory    section "ram", version 4: records until END_OF_SECTION. A record is 8 bytes, address and flags in one;
              the name of its block (a length byte before it) unless SAME_BLOCK; then a page, or the one byte that
              fills it

Everything else of memory (compression, RDMA, several channels) is switched on by capabilities that we do not use;
what is not known ends in an error. Sources: https://www.qemu.org/docs/master/devel/migration/main.html ("Stream
structure"), migration/ram.c (RAM_SAVE_FLAG_*), migration/savevm.c (QEMU_VM_*).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from agent_swarm.errors import MachineError

if TYPE_CHECKING:
    import socket

MAGIC = b"QEVM\0\0\0\3"
RAM_SECTION = b"\x03ram\0\0\0\0\0\0\0\x04"
SECTION_PART, SECTION_END, COMMAND, FOOTER = 2, 3, 8, 0x7E

FILLED, SIZES, PAGE, END_OF_SECTION, SAME_BLOCK = 0x02, 0x04, 0x08, 0x10, 0x20
PAGE_BYTES = 4096
FLAGS = PAGE_BYTES - 1

BUFFER_BYTES = 4 << 20
LONGEST_RECORD = 8 + 1 + 255 + PAGE_BYTES
PREFIX_MAX_BYTES = 64 << 10
RUN_MAX_PAGES = 512
"""Fewer than IOV_MAX, which is 1024."""


class Splitter:
    """Takes one stream apart. `memory` is the descriptor of an empty file; `block` names the memory in the stream."""

    def __init__(
        self, connection: socket.socket, memory: int, rest: BinaryIO, *, block: str, size_bytes: int
    ) -> None:
        self._connection = connection
        self._memory = memory
        self._rest = rest
        self._block = block.encode()
        self._size = size_bytes
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._at = 0
        self._end = 0
        self._written = bytearray(size_bytes // PAGE_BYTES)
        self._run: list[memoryview] = []
        self._run_at = 0
        self._current = b""

    def run(self) -> None:
        """Until the sender closes the connection. Raises MachineError for a stream that is none, or is cut off,
        OSError where a file cannot be written."""
        os.ftruncate(self._memory, self._size)
        section = self._head()
        self._records()
        self._footer(section)
        while True:
            kind = self._byte()
            if kind == COMMAND:
                self._keep(bytes([kind]))
                head = self._take(4)
                self._keep(head + self._take(int.from_bytes(head[2:], "big")))
                continue
            if kind not in (SECTION_PART, SECTION_END) or self._take(4) != section:
                raise _unknown(what=f"section type {kind}")
            self._keep(bytes([kind]) + section)
            self._records()
            self._footer(section)
            if kind == SECTION_END:
                break
        while self._at < self._end or self._fill():
            self._rest.write(self._view[self._at : self._end])
            self._at = self._end

    def _head(self) -> bytes:
        """Keep all up to the memory's content; return the section's id."""
        while (found := self._buffer.find(RAM_SECTION, 0, self._end)) < 5 and self._end < PREFIX_MAX_BYTES:
            if not self._fill():
                break
        if found < 5 or not self._buffer.startswith(MAGIC) or self._buffer[found - 5] != 1:
            raise _unknown(what="no memory at its beginning")
        self._keep(self._take(found + len(RAM_SECTION)))
        return bytes(self._buffer[found - 4 : found])

    def _footer(self, section: bytes) -> None:
        footer = self._take(5)
        if footer[0] != FOOTER or footer[1:] != section:
            raise _unknown(what="a section without its end")
        self._keep(footer)

    def _records(self) -> None:
        """The content of a memory section; the hot loop: once for every page that the machine has."""
        view, written, mine = self._view, self._written, self._current == self._block
        while True:
            if self._end - self._at < LONGEST_RECORD:
                self._flush()
                while self._end - self._at < LONGEST_RECORD and self._fill():
                    pass  # a record may come in pieces
            at = self._at
            if self._end - at < 8:
                raise _cut_off()
            word = int.from_bytes(view[at : at + 8], "big")
            flags = word & FLAGS
            at += 8
            if flags & END_OF_SECTION:
                self._at = at
                self._flush()
                self._keep(word.to_bytes(8, "big"))
                return
            if flags & SIZES:
                self._at = at
                self._sizes(word)
                continue
            if not flags & SAME_BLOCK:
                length = view[at]
                self._current = bytes(view[at + 1 : at + 1 + length])
                mine = self._current == self._block
                at += 1 + length
            content = flags & ~SAME_BLOCK
            length = PAGE_BYTES if content == PAGE else 1 if content == FILLED else 0
            if not length:
                raise _unknown(what=f"a record with flags {flags:#x}")
            if self._end - at < length:
                raise _cut_off()
            self._at = at + length
            address = word - flags
            if mine and address >= self._size:
                raise _unknown(what="a page beyond the memory")
            if not mine:
                self._keep(
                    (word & ~SAME_BLOCK).to_bytes(8, "big") + bytes([len(self._current)]) + self._current
                )
                self._keep(view[at : at + length])
            elif content == PAGE:
                self._page(address, view[at : at + length])
            elif view[at] or written[address // PAGE_BYTES]:  # else it is a hole already
                self._flush()
                self._page(address, memoryview(bytes([view[at]]) * PAGE_BYTES))

    def _sizes(self, word: int) -> None:
        """The list of all blocks with their sizes."""
        self._keep(word.to_bytes(8, "big"))
        left, found = word - (word & FLAGS), -1
        while left > 0:
            length = self._byte()
            name = self._take(length)
            size = self._take(8)
            self._keep(bytes([length]) + name + size)
            left -= int.from_bytes(size, "big")
            if name == self._block:
                found = int.from_bytes(size, "big")
        if found != self._size or left:
            raise _unknown(what=f"{found} bytes of memory")

    def _page(self, address: int, content: memoryview) -> None:
        run = self._run
        if run and (address != self._run_at + len(run) * PAGE_BYTES or len(run) == RUN_MAX_PAGES):
            self._flush()
            run = self._run
        if not run:
            self._run_at = address
        run.append(content)
        self._written[address // PAGE_BYTES] = 1

    def _flush(self) -> None:
        """Write the run of pages, which lie in the buffer."""
        if not self._run:
            return
        left, at = len(self._run) * PAGE_BYTES, self._run_at
        done = os.pwritev(self._memory, self._run, at)
        if done < left:  # a file system that is nearly full
            rest = memoryview(b"".join(self._run))[done:]
            while rest:
                done += os.pwrite(self._memory, rest, at + done)
                rest = memoryview(b"".join(self._run))[done:]
        self._run = []

    def _keep(self, data: bytes | memoryview) -> None:
        self._rest.write(data)

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> bytes:
        while self._end - self._at < count:
            self._flush()
            if not self._fill():
                raise _cut_off()
        taken = bytes(self._view[self._at : self._at + count])
        self._at += count
        return taken

    def _fill(self) -> int:
        """Receive more behind what is still unread; 0 at the end of the stream. No view into the buffer may be left."""
        left = self._end - self._at
        if self._at:
            self._buffer[:left] = self._buffer[self._at : self._end]
            self._at, self._end = 0, left
        received = self._connection.recv_into(self._view[left:])
        self._end += received
        return received


def _cut_off() -> MachineError:
    message = "QEMU did not send all of the machine's memory"
    return MachineError(message, hint="Try again.")


def _unknown(*, what: str) -> MachineError:
    message = f"QEMU sends the machine's memory in a form that is not known: {what}"
    return MachineError(message, hint="This version of QEMU is newer than what agent-swarm knows.")
