"""Frames in a stream of bytes, whatever the protocol: where they begin, and how the search goes on behind noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Frame = TypeVar("Frame")
# The frame at a place in a buffer and its size on the wire; (None, 0) for noise, (None, 1) for one not yet whole.
FrameAt = Callable[[bytes, int], tuple[Frame | None, int]]


def split(buffer: bytes, header: bytes, frame_at: FrameAt[Frame], final: bool) -> tuple[list[Frame], bytes]:
    """Whole frames in `buffer`, and the bytes that may be the start of another.

    Anything that cannot be a frame costs one byte and the search goes on, so a frame behind noise is found. With
    `final` no more bytes will come: a frame that claims to be longer than the buffer is taken for noise too.
    """
    frames: list[Frame] = []
    at = 0
    while True:
        start = buffer.find(header, at)
        if start < 0:
            return frames, b"" if final else _begun(buffer[at:], header)
        frame, size = frame_at(buffer, start)
        if frame is not None:
            frames.append(frame)
            at = start + size
        elif size and not final:
            return frames, buffer[start:]
        else:
            at = start + 1


def _begun(tail: bytes, header: bytes) -> bytes:
    """The end of `tail` that may be the start of a header."""
    size = next((size for size in range(len(header) - 1, 0, -1) if tail.endswith(header[:size])), 0)
    return tail[len(tail) - size :]
