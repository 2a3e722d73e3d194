"""Pixels in memory that a client and a server on one machine both map: what is sent is a reference to them.

The memory is a memfd. It has no name in any folder, and the kernel frees it with the last process that holds it, in
whatever way that ended; nothing has to be unlinked, and no resource tracker to be told. Its size is sealed: of a file
in /dev/shm a client could cut off the end while the server reads, and that kills the reader. A reference says where to
find it: process, descriptor and name, then the slot and its generation.

Pictures are copied into a slot, or captured there in the first place (`reserve`).

Rule 1: a client does not write a slot again before its request was answered.
Rule 2: a server compares the slot's generation before and after a policy has read it. So a client that breaks rule 1
gets an error, never an action computed from half of one picture and half of another.

This file is the client's side and the layout; the server's is loan.py. It knows no sockets.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
import uuid
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hotpolicy.runtime.wire import Lent

try:
    import fcntl

    SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    SUPPORTED = hasattr(os, "memfd_create")
except (ImportError, AttributeError):  # not Linux
    SUPPORTED = False

Shapes = Mapping[str, Sequence[int]]  # by camera: (height, width, 3)
PREFIX = "hotpolicy-ring-"  # of the memfd's name, then 32 hexadecimal digits
LAYOUT = struct.Struct("<16sIIQ")  # magic, version, slots, bytes of a slot; at offset 0
MAGIC, VERSION = b"hotpolicy ring", 1
GENERATION = struct.Struct("<I")
GENERATIONS_AT = 64  # offset of the first slot's generation; each has a cache line of its own
LINE = 64  # bytes; pictures in a slot begin at multiples of it
PAGE = 4096  # bytes of the header, and what a slot's size is a multiple of
SLOTS = 4  # one is read, one is written, and two more were superseded and are not answered yet
MOST_SLOTS = (PAGE - GENERATIONS_AT) // LINE
RESERVED = -1  # instead of a request's id: a slot that is being written for the next one


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
        self._places: dict[str, np.ndarray] = {}  # in the reserved slot

    def reserve(self, shapes: Shapes) -> dict[str, np.ndarray] | None:
        """Where the pictures of the next request may be written, instead of what was reserved before; None when no slot
        is free or they do not fit one."""
        self.answered(RESERVED)
        self._places = self._take(RESERVED, shapes) or {}
        return self._places or None

    def claim(self, id: int, images: Mapping[str, np.ndarray]) -> bool:
        """Whether these are the places that were reserved. From then on their slot is this request's."""
        places = self._places
        if not places or images.keys() != places.keys() or any(images[name] is not places[name] for name in places):
            return False
        self._lent[self._lent.index(RESERVED)] = id
        self._places = {}
        return True

    def lend(self, id: int, images: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Lent]] | None:
        """The pictures (uint8) of request `id` in a slot, copied unless they lie there already. Returns the reference
        and a stand-in for each picture, or None when no slot is free or they do not fit one."""
        if not self.claim(id, images):
            places = self._take(id, shapes_of(images))
            if places is None:
                return None
            for camera, image in images.items():
                np.copyto(places[camera], image)
        return self._reference(self._lent.index(id)), layout(shapes_of(images))

    def _take(self, id: int, shapes: Shapes) -> dict[str, np.ndarray] | None:
        """A free slot, cut into pictures of these shapes."""
        if None not in self._lent or needed(shapes) > self.slot_bytes or self._bytes is None:
            return None
        slot = self._lent.index(None)  # the lowest: it is the one most likely still in a cache
        self._lent[slot] = id
        self._generation = (self._generation + 1) & 0xFFFFFFFF
        GENERATION.pack_into(self._map, GENERATIONS_AT + slot * LINE, self._generation)
        pixels = self._bytes[PAGE + slot * self.slot_bytes :]
        return {
            camera: pixels[one.offset : one.offset + math.prod(one.shape)].reshape(one.shape)
            for camera, one in layout(shapes).items()
        }

    def answered(self, id: int) -> None:
        """The server has done with what was lent for this request."""
        if id in self._lent:
            self._lent[self._lent.index(id)] = None

    def close(self) -> None:
        """Whoever still reads keeps the memory for as long as it does, and so do the arrays that `reserve` gave."""
        self._bytes, self._places = None, {}
        with contextlib.suppress(BufferError):
            self._map.close()
        self._close()

    def _reference(self, slot: int) -> dict[str, Any]:
        (generation,) = GENERATION.unpack_from(self._map, GENERATIONS_AT + slot * LINE)
        return {"pid": self._pid, "fd": self._fd, "name": self.name, "slot": slot, "generation": generation}


def shapes_of(images: Mapping[str, np.ndarray]) -> Shapes:
    return {camera: image.shape for camera, image in images.items()}


def layout(shapes: Shapes) -> dict[str, Lent]:
    """Where each picture is in a slot."""
    at, places = 0, {}
    for camera, shape in shapes.items():
        places[camera] = Lent(tuple(shape), at)
        at += _up(math.prod(shape), LINE)
    return places


def needed(shapes: Shapes) -> int:
    """Bytes of a slot that pictures of these shapes fill."""
    return sum(_up(math.prod(shape), LINE) for shape in shapes.values())


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
