"""What a terminal sends, as names of keys. Bytes in, names out: knows no terminal and no time."""

from __future__ import annotations

ESCAPE = 0x1B
NAMED = {0x09: "tab", 0x0A: "enter", 0x0D: "enter", 0x20: "space", 0x7F: "backspace"}
ARROWS = {ord("A"): "up", ord("B"): "down", ord("C"): "right", ord("D"): "left"}
LONGEST = 32  # bytes of an escape sequence; what goes on longer is none


def split_keys(data: bytes) -> tuple[list[str], bytes]:
    """Names of the keys in `data`, and the remainder: the start of an escape sequence whose end is still to come.

    Letters are lower case. Keys nobody could mean here (function keys, arrows with a modifier, control and non-ASCII
    characters) have no name and are swallowed whole, so that no part of them is taken for a letter. Escape before
    anything that makes no sequence is the escape key. Cutting `data` anywhere changes nothing, if the remainder is put
    before what comes next.
    """
    keys: list[str] = []
    at = 0
    while at < len(data):
        if data[at] != ESCAPE:
            name = _name(data[at])
            at += 1
        else:
            name, size = _sequence(data[at : at + LONGEST])
            if not size:
                return keys, data[at:]
            at += size
        if name:
            keys.append(name)
    return keys, b""


def settle(remainder: bytes) -> list[str]:
    """The keys in a remainder after which nothing came for so long that nothing will."""
    return ["escape"] if remainder == bytes((ESCAPE,)) else []


def _name(byte: int) -> str | None:
    if 0x21 <= byte <= 0x7E:
        return chr(byte).lower()  # caps lock changes nothing
    return NAMED.get(byte)


def _sequence(data: bytes) -> tuple[str | None, int]:
    """Name and size of what begins with the escape at the start of `data`; size 0: not complete."""
    if len(data) == 1:
        return None, 0
    if data[1] == ord("O"):  # arrows of a terminal in application mode
        return (ARROWS.get(data[2]), 3) if len(data) > 2 else (None, 0)
    if data[1] != ord("["):
        return "escape", 1
    if data[2:3] == b"[":  # function keys of the Linux console
        return (None, 4) if len(data) > 3 else (None, 0)
    end = 2
    while end < len(data) and 0x20 <= data[end] <= 0x3F:  # parameters
        end += 1
    if end == len(data):
        return None, end if end == LONGEST else 0
    if not 0x40 <= data[end] <= 0x7E:  # broken off: what broke it is a key of its own
        return None, end
    return (ARROWS.get(data[end]) if end == 2 else None), end + 1
