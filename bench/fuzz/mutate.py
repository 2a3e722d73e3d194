"""From right messages to almost right ones: of bytes, of msgpack's values, of frames. Repeatable from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgpack

Frames = Sequence[bytes]

# Bytes that mean something in msgpack, and lengths nobody has sent.
PIECES = (
    b"\x80", b"\x90", b"\xc0", b"\xc1", b"\xc2", b"\xc7\xff\x01", b"\xca\x7f\xc0\x00\x00", b"\xcb\x7f\xf8" + bytes(6),
    b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xd9\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xde\xff\xff", b"\x91" * 64, b"\x81\xa1a" * 32,
    b"\xa2$a", b"\x93\xa3<f4", b"\x00", b"\xff" * 8,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 1e308, float("nan"), float("inf"), "",
    "x" * 300, "\x00", "\ud800".encode("utf-8", "surrogatepass"), b"", b"x" * 5000, [], {}, [[[[[[[[[[]]]]]]]]]],
    [0] * 5000,
    {"a": {"b": {"c": {"d": {"e": {"f": {"g": {}}}}}}}}, {str(n): n for n in range(300)}, {1: 2}, "|O", "<f4", "<U4",
    "|V8", "<M8[s]", [2**40, 2**40], [-1], [0, 2**62, 2**62], {"$a": ["<f4", [1], 1]}, {"$a": ["|O", [1], b"x"]},
    {"$a": []}, {"$a": ["|u1", [2, 2], b"xxxx"]}, msgpack.ExtType(1, b"x"), msgpack.Timestamp(1),
    "../../etc/passwd", "/" * 5000,
)  # fmt: skip


class Mutator:
    def __init__(self, corpus: Sequence[Frames], seed: int):
        self._corpus, self._random = corpus, random.Random(seed)

    def next(self) -> list[bytes]:
        """One message, changed in one to four ways."""
        pick = self._random
        frames = list(pick.choice(self._corpus))
        for _ in range(pick.choice((1, 1, 1, 2, 3, 4))):
            way = pick.random()
            if way < 0.45:
                self._values(frames)
            elif way < 0.9:
                self._bytes(frames)
            else:
                self._frames(frames)
        return frames

    def _bytes(self, frames: list[bytes]) -> None:
        pick = self._random
        index = self._head(frames)
        if index is None:
            return
        data = bytearray(frames[index])
        at = (
            min(int(pick.expovariate(1 / 60)), max(0, len(data) - 1))
            if pick.random() < 0.7
            else pick.randrange(len(data) + 1)
        )
        match pick.randrange(7):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << pick.randrange(8)
            case 1:
                data[at : at + 1] = pick.choice(PIECES)
            case 2:
                data[at:at] = pick.choice(PIECES)
            case 3:
                del data[at : at + pick.choice((1, 2, 4, 8, 64))]
            case 4:
                del data[at:]
            case 5:
                data[at:at] = data[at : at + pick.choice((1, 4, 16))] * pick.choice((1, 3))
            case _:
                other = pick.choice(pick.choice(self._corpus))
                data[at:] = other[pick.randrange(len(other) + 1) :]
        frames[index] = bytes(data)

    def _values(self, frames: list[bytes]) -> None:
        """Replace, drop, add or rename one value in a msgpack frame, if it is one still."""
        index = self._head(frames)
        if index is None:
            return
        try:
            value = msgpack.unpackb(frames[index], strict_map_key=False)
            places: list[tuple[Any, Any]] = []
            _walk(value, places)
            if not places:
                return
            self._change(*self._random.choice(places))
            frames[index] = msgpack.packb(value)
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
            return

    def _change(self, holder: Any, key: Any) -> None:
        pick = self._random
        match pick.randrange(6):
            case 0 | 1 | 2:
                holder[key] = pick.choice(VALUES)
            case 3:
                del holder[key]
            case 4 if isinstance(holder, dict):
                new = pick.choice(("", "a" * 400, "\x00", b"nd", "$a", 7, "kind", "ring", "jpeg", b"__ndarray__"))
                holder[new] = holder.pop(key)
            case _:
                if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                    holder[key] = holder[key] * pick.choice((-1, 0.5, 2, 10**6)) + pick.choice((-1, 0, 1))
                elif isinstance(holder, list):
                    holder.extend([holder[key]] * pick.choice((1, 10, 300)))
                else:
                    holder[f"{key}+"] = holder[key]

    def _frames(self, frames: list[bytes]) -> None:
        pick = self._random
        at = pick.randrange(len(frames) + 1)
        match pick.randrange(5):
            case 0 if len(frames) > 1:
                del frames[min(at, len(frames) - 1)]
            case 1:
                frames.insert(at, pick.choice((b"", b"x", b"\x80", b"x" * 9216)))
            case 2 if frames:
                frames.insert(at, pick.choice(frames))
            case 3:
                pick.shuffle(frames)
            case _:
                frames.extend([b"x"] * pick.choice((1, 20, 100)))

    def _head(self, frames: list[bytes]) -> int | None:
        """Mostly the first frame that has anything in it, where the msgpack is."""
        full = [index for index, frame in enumerate(frames) if frame]
        if not full:
            return None
        return full[0] if self._random.random() < 0.9 else self._random.choice(full)


def _walk(value: Any, places: list[tuple[Any, Any]]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            places.append((value, key))
            _walk(item, places)
    elif isinstance(value, list):
        for index, item in enumerate(value[:50]):
            places.append((value, index))
            _walk(item, places)
