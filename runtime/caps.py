"""The most a peer may send in one message."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caps:
    """The most a peer may send in one message."""

    message_bytes: int = 64 << 20  # all frames together
    header_bytes: int = 1 << 20
    frames: int = 17  # the header and sixteen arrays
    ndim: int = 6
    depth: int = 8  # maps and lists inside one another
    map_length: int = 256
    list_length: int = 4096


CAPS = Caps()
COMMAND_CAPS = Caps(message_bytes=1 << 20, frames=1)  # of an operator, who sends no arrays
