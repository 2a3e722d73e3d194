"""Pixels a client lent: its ring opened, checked and read by a server. See ring.py for what a ring is.

Nothing a client says is taken for granted. A reference holds numbers and a name, never a path; what it points at must
be a memfd of ours, of the same user, with its size sealed. It is mapped for reading only.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import stat
from typing import Any

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.ring import (
    GENERATION,
    GENERATIONS_AT,
    LAYOUT,
    LINE,
    MAGIC,
    MOST_SLOTS,
    PAGE,
    PREFIX,
    VERSION,
)
from hotpolicy.runtime.scheduler import SessionKey

NAME = re.compile(rf"{PREFIX}[0-9a-f]{{32}}", re.ASCII)
SWEEP_S = 1.0  # how often clients are looked after that may be gone


class Borrowed:
    """One client's ring. What was read from its header once is never read again: the client may write there."""

    def __init__(self, pid: int, fd: int, name: str, largest: int):
        """`largest`: the most bytes of a slot. Raises BadRequest naming the field."""
        self.name = name
        self._path = f"/proc/{pid}/fd/{fd}"
        self._map = self._open(largest)
        magic, version, self.slots, self.slot_bytes = LAYOUT.unpack_from(self._map)
        if magic.rstrip(b"\0") != MAGIC or version != VERSION or not 0 < self.slots <= MOST_SLOTS:
            raise BadRequest(f"ring: expected layout {VERSION} and 1 to {MOST_SLOTS} slots in its header")
        if not 0 < self.slot_bytes <= largest or len(self._map) != PAGE + self.slots * self.slot_bytes:
            raise BadRequest(f"ring: expected slots of at most {largest} bytes that fill it, got {self.slot_bytes}")
        self._view = memoryview(self._map)

    def slot(self, number: int, generation: int) -> Loan:
        """Raises BadRequest when there is no such slot, or other pictures are in it already."""
        if number >= self.slots:
            raise BadRequest(f"ring.slot: expected 0 to {self.slots - 1}, got {number}")
        begin = PAGE + number * self.slot_bytes
        loan = Loan(self, number, generation, self._view[begin : begin + self.slot_bytes])
        loan.check()
        return loan

    def generation(self, number: int) -> int:
        return int(GENERATION.unpack_from(self._map, GENERATIONS_AT + number * LINE)[0])

    def there(self) -> bool:
        """Whether the client still has it open."""
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file

    def _open(self, largest: int) -> mmap.mmap:
        try:
            if os.readlink(self._path) != f"/memfd:{self.name} (deleted)":
                raise BadRequest("ring.name: expected the name of the memfd that pid and fd point at")
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise BadRequest(f"ring: expected an open memfd of a process here, got {error.strerror}") from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise BadRequest("ring: expected a memfd of the server's own user")
            if not PAGE < found.st_size <= PAGE + MOST_SLOTS * largest:
                raise BadRequest(f"ring: expected a page and at most {MOST_SLOTS} slots, got {found.st_size} bytes")
            if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                raise BadRequest("ring: expected a memfd that is sealed against shrinking")
            self._file = (found.st_dev, found.st_ino)
            return mmap.mmap(descriptor, found.st_size, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError as error:  # seals of a file that is no memfd
            raise BadRequest(f"ring: expected a memfd, got {error.strerror}") from error
        finally:
            os.close(descriptor)


class Loan:
    """The slot of one request. Its pixels are read in place; `check` again once they have been."""

    __slots__ = ("_generation", "_number", "_ring", "pixels")

    def __init__(self, ring: Borrowed, number: int, generation: int, pixels: memoryview):
        self._ring, self._number, self._generation = ring, number, generation
        self.pixels = pixels  # read-only; the client can write to it at any time

    def check(self) -> None:
        """Raises BadRequest when the client has put something else there. From any thread."""
        if (found := self._ring.generation(self._number)) != self._generation:
            expected = f"ring.generation: slot {self._number} was overwritten: expected {self._generation}"
            raise BadRequest(f"{expected}, got {found}")


class Loans:
    """The rings of a front's sessions, one each; for whoever receives, one thread at a time."""

    def __init__(self, most: int, largest: int):
        """`most`: rings held at once; one more takes the place of the oldest, which opens again when it is needed.
        `largest`: the most bytes of a slot."""
        self._most, self._largest = most, largest
        self._rings: dict[SessionKey, Borrowed] = {}
        self._swept = now()

    def __len__(self) -> int:
        return len(self._rings)

    def take(self, session: SessionKey, reference: object) -> Loan:
        """Raises BadRequest naming the field of a reference that is wrong."""
        if type(reference) is not dict:
            raise BadRequest(f"ring: expected pid, fd, name, slot and generation, got {type(reference).__name__}")
        ring = self._rings.get(session)
        if ring is None or ring.name != reference.get("name"):
            ring = self._open(session, reference)
        return ring.slot(_number(reference, "slot"), _number(reference, "generation"))

    def _open(self, session: SessionKey, reference: dict[str, Any]) -> Borrowed:
        pid, fd, name = _number(reference, "pid"), _number(reference, "fd"), reference.get("name")
        if type(name) is not str or not NAME.fullmatch(name):
            raise BadRequest(f"ring.name: expected {PREFIX} and 32 hexadecimal digits")
        self._rings.pop(session, None)
        ring = Borrowed(pid, fd, name, self._largest)
        while len(self._rings) >= self._most:
            del self._rings[next(iter(self._rings))]
        self._rings[session] = ring
        return ring

    def forget(self, session: SessionKey) -> None:
        self._rings.pop(session, None)

    def sweep(self) -> None:
        """Let go, now and then, of the rings whose clients are gone or have closed them."""
        if self._rings and now() - self._swept >= SWEEP_S:
            self._rings = {session: ring for session, ring in self._rings.items() if ring.there()}
            self._swept = now()


def _number(reference: dict[str, Any], name: str) -> int:
    value = reference.get(name)
    if type(value) is not int or not 0 <= value <= 0xFFFFFFFF:
        raise BadRequest(f"ring.{name}: expected an integer from 0 to 2**32-1, got {type(value).__name__}")
    return value
