"""Pixels in memory that a client and a server on one machine both map: what is sent is a reference to them.

The memory is a memfd. It has no name in any folder, and the kernel frees it with the last process that holds it, in
whatever way that ended; nothing has to be unlinked, and no resource tracker to be told. Its size is sealed: of a file
in /dev/shm a client could cut off the end while the server reads, and that kills the reader. A reference says where to
find it: process, descriptor and name, then the slot and its generation.

Rule 1: a client does not write a slot again before its request was answered.
Rule 2: a server compares the slot's generation before and after a policy has read it. So a client that breaks rule 1
gets an error, never an action computed from half of one picture and half of another.

This file is the client's side and the layout; the server's is loan.py. It knows no sockets.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import uuid
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from hotpolicy.runtime.wire import Lent

try:
    import fcntl

    SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    SUPPORTED = hasattr(os, "memfd_create")
except (ImportError, AttributeError):  # not Linux
    SUPPORTED = False

PREFIX = "hotpolicy-ring-"  # of the memfd's name, then 32 hexadecimal digits
LAYOUT = struct.Struct("<16sIIQ")  # magic, version, slots, bytes of a slot; at offset 0
MAGIC, VERSION = b"hotpolicy ring", 1
GENERATION = struct.Struct("<I")
GENERATIONS_AT = 64  # offset of the first slot's generation; each has a cache line of its own
LINE = 64  # bytes; pictures in a slot begin at multiples of it
PAGE = 4096  # bytes of the header, and what a slot's size is a multiple of
SLOTS = 4  # one is read, one is written, and two more were superseded and are not answered yet
MOST_SLOTS = (PAGE - GENERATIONS_AT) // LINE
GREETING = 0  # the id of the question whether the server reads rings; requests begin at 1
LEAST_BYTES = 64 << 10  # of all pictures together; below, frames are as quick


class Ring:
    """A client's. Slots are for pictures of one request each; for one thread."""

    def __init__(self, slot_bytes: int, slots: int = SLOTS, generation: int = 0):
        """Raises OSError when the kernel gives no memory. `generation` is the number before the first one."""
        self.slot_bytes = _up(slot_bytes, PAGE)
        self.name = f"{PREFIX}{uuid.uuid4().hex}"
        size = PAGE + slots * self.slot_bytes
        self._generation = generation
        self._pid = os.getpid()
        self._fd = os.memfd_create(self.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close = weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, size)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, SEALS)
        self._map = mmap.mmap(self._fd, size)
        self._bytes: np.ndarray | None = np.frombuffer(self._map, np.uint8)
        LAYOUT.pack_into(self._map, 0, MAGIC, VERSION, slots, self.slot_bytes)
        self._lent: list[int | None] = [None] * slots  # by slot: the request whose answer is awaited

    def lend(self, id: int, images: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Lent]] | None:
        """Copy the pictures (uint8) of request `id` into a slot. Returns the reference and a stand-in for each picture,
        or None when no slot is free or they do not fit one."""
        if None not in self._lent or needed(images) > self.slot_bytes or self._bytes is None:
            return None
        slot = self._lent.index(None)  # the lowest: it is the one most likely still in a cache
        self._lent[slot] = id
        self._generation = (self._generation + 1) & 0xFFFFFFFF
        GENERATION.pack_into(self._map, GENERATIONS_AT + slot * LINE, self._generation)
        begin, at, lent = PAGE + slot * self.slot_bytes, 0, {}
        for camera, image in images.items():
            place = self._bytes[begin + at : begin + at + image.nbytes].reshape(image.shape)
            np.copyto(place, image)
            lent[camera] = Lent(image.shape, at)
            at = _up(at + image.nbytes, LINE)
        return self._reference(slot), lent

    def answered(self, id: int) -> None:
        """The server has done with what was lent for this request."""
        if id in self._lent:
            self._lent[self._lent.index(id)] = None

    def close(self) -> None:
        """A server that still reads keeps the memory for as long as it does."""
        self._bytes = None
        with contextlib.suppress(BufferError):
            self._map.close()
        self._close()

    def _reference(self, slot: int) -> dict[str, Any]:
        return {"pid": self._pid, "fd": self._fd, "name": self.name, "slot": slot, "generation": self._generation}


class Lending:
    """Whether a client may lend, and the ring it lends from. Until a server has said that it reads rings, and after it
    was lost, pictures go as frames."""

    def __init__(self, endpoint: str) -> None:
        self._server = ""  # the endpoint that this is about
        self.allowed: bool | None = None  # None: the server is to be asked
        self.asked = False  # the question is on its way
        self._ring: Ring | None = None
        self.about(endpoint)

    def about(self, endpoint: str) -> bool:
        """The next request goes to this server. Whether it is to be asked first."""
        if endpoint != self._server:
            self._server, self.asked = endpoint, False
            self.allowed = None if endpoint.startswith("ipc://") else False
        return self.allowed is None and not self.asked

    def lend(self, message: dict[str, Any]) -> bool:
        """Exchange the pictures of an infer message for stand-ins, where that pays and is allowed."""
        images = message["images"]
        if not self.allowed or not all(_picture(image) for image in images.values()):
            return False
        size = needed(images)
        if size < LEAST_BYTES:
            return False
        lent = self._ring.lend(message["id"], images) if self._ring else None
        if lent is None:  # the first; or larger pictures; or so many answers were lost that no slot is free
            self.close()
            try:
                self._ring = Ring(size)
            except OSError:  # no memory, or none of this kind: there are frames
                self.allowed = False
                return False
            lent = self._ring.lend(message["id"], images)
            assert lent is not None
        message["ring"], message["images"] = lent
        return True

    def heard(self, reply: Mapping[str, Any]) -> bool:
        """Take note of any reply. Whether it answers the question of this object, and nobody else awaits it."""
        self.answered(reply["id"])
        if self.allowed is None and reply["kind"] == "hello":
            self.allowed = reply.get("shared_memory") is True
        if not self.asked or reply["id"] != GREETING:
            return False
        self.allowed, self.asked = bool(self.allowed), False
        return True

    def answered(self, id: int) -> None:
        if self._ring:
            self._ring.answered(id)

    def lost(self) -> None:
        """The server did not answer: whoever is there next is asked again."""
        if self._server.startswith("ipc://"):
            self.allowed, self.asked = None, False

    def close(self) -> None:
        if self._ring:
            self._ring.close()
            self._ring = None


def needed(images: Mapping[str, np.ndarray]) -> int:
    """Bytes of a slot that these fill."""
    return sum(_up(image.nbytes, LINE) for image in images.values())


def _picture(image: object) -> bool:
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.nbytes > 0


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
