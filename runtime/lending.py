"""Whether a client's pictures go through shared memory, and through which ring. See ring.py for what a ring is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from hotpolicy.runtime.ring import Ring, Shapes, needed, shapes_of

T = TypeVar("T")
GREETING = 0  # the id of the question whether the server reads rings; requests begin at 1
LEAST_BYTES = 64 << 10  # of all pictures together; below, frames are as quick


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
            if self._ring:  # what lies in it may go as frames: they too are read until the answer
                self._ring.claim(message["id"], images)
            return False
        shapes = shapes_of(images)
        if needed(shapes) < LEAST_BYTES:
            return False
        lent = self._of_ring(shapes, lambda ring: ring.lend(message["id"], images))
        if lent is None:
            return False
        message["ring"], message["images"] = lent
        return True

    def reserve(self, shapes: Shapes) -> dict[str, np.ndarray]:
        """Memory for the pictures of the next request: in the ring where that pays and is allowed."""
        places = None
        if self.allowed and needed(shapes) >= LEAST_BYTES:
            places = self._of_ring(shapes, lambda ring: ring.reserve(shapes))
        return places or plain(shapes)

    def _of_ring(self, shapes: Shapes, take: Callable[[Ring], T | None]) -> T | None:
        """What `take` gets of the ring, or of another: it is the first; or pictures are larger; or so many answers were
        lost that no slot is free. None where there is none to be had."""
        found = take(self._ring) if self._ring else None
        if found is not None:
            return found
        self.close()
        try:
            self._ring = Ring(needed(shapes))
        except OSError:  # no memory, or none of this kind: there are frames
            self.allowed = False
            return None
        return take(self._ring)

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


def plain(shapes: Shapes) -> dict[str, np.ndarray]:
    """Memory for pictures that is nobody else's."""
    return {camera: np.empty(shape, np.uint8) for camera, shape in shapes.items()}


def _picture(image: object) -> bool:
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.nbytes > 0
