"""Pictures that travel as JPEG, for links slower than a cable: encoded by a client, decoded by the server.

It costs about a millisecond a picture on each side and changes the pixels, so it is never done unasked.

A few hundred bytes of JPEG can claim 4 billion pixels, or send the decoder over the same pixels thousands of times. So
the markers are read first: one baseline frame, one scan, and no more pixels than the policy's camera has.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from hotpolicy.runtime.errors import BadRequest, ConfigError
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.wire import Buffer, Encoded

READABLE = importlib.util.find_spec("simplejpeg") is not None
INSTALL = "install hotpolicy with the extra `jpeg`"
MOST_OVERHEAD = 16 << 10  # bytes of headers and tables

_BEGIN, _END = b"\xff\xd8", b"\xff\xd9"
_BASELINE, _SCAN = (0xC0, 0xC1), 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, baseline or other
_INSIDE_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # a marker that is neither a stuffed 0xff nor a restart


def check_quality(jpeg: int | Mapping[str, int] | None) -> Mapping[str, int] | int | None:
    """Qualities 1 to 100, by camera or for all. Raises ConfigError."""
    if jpeg is None:
        return None
    if not READABLE:
        raise ConfigError(f"jpeg: expected the package simplejpeg: {INSTALL}")
    for camera, quality in jpeg.items() if isinstance(jpeg, Mapping) else (("", jpeg),):
        if type(quality) is not int or not 1 <= quality <= 100:
            raise ConfigError(f"jpeg{camera and '.' + camera}: expected a quality from 1 to 100, got {quality!r}")
    return jpeg


def pack(images: Mapping[str, Any], jpeg: int | Mapping[str, int]) -> dict[str, Any]:
    """The pictures of an infer message, those that `jpeg` has a quality for encoded. What is no (height, width, 3)
    uint8 goes as it is, for the server to refuse."""
    packed = dict(images)
    for camera, image in images.items():
        quality = jpeg.get(camera) if isinstance(jpeg, Mapping) else jpeg
        if quality and isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
            packed[camera] = encode(image, quality)
    return packed


def encode(image: np.ndarray, quality: int) -> Encoded:
    """(height, width, 3) uint8 RGB -> a baseline JPEG with its colours halved in both directions."""
    import simplejpeg

    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")
    return Encoded("jpeg", image.shape, data)


def unpack(message: Mapping[str, Any], spec: RobotSpec) -> None:
    """Decode, in place, the pictures of an infer message that travelled encoded. Raises BadRequest naming the one that
    is not what it must be, before anything of its claimed size is made."""
    images = message.get("images")
    if type(images) is not dict:
        return
    for camera, image in images.items():
        if type(image) is Encoded:
            largest = {one.name: one.height * one.width for one in spec.cameras}
            field = f"images.{ascii(camera[:40])[1:-1]}"
            if camera not in largest:
                raise BadRequest(f"{field}: this policy knows no such camera")
            images[camera] = decode(image, largest[camera], field)


def decode(image: Encoded, most_pixels: int, field: str = "image") -> np.ndarray:
    """-> (height, width, 3) uint8 RGB, read-only. Raises BadRequest."""
    if not READABLE:
        raise BadRequest(f"{field}: this server reads no jpeg: {INSTALL} there")
    if len(image.data) > 3 * most_pixels + MOST_OVERHEAD:
        raise BadRequest(f"{field}: expected fewer bytes than its pixels have, got {len(image.data)}")
    try:
        height, width = size(image.data)
    except ValueError as error:
        raise BadRequest(f"{field}: expected a baseline jpeg, {error}") from None
    if (height, width, 3) != image.shape:
        raise BadRequest(f"{field}: expected the shape it was sent with, {image.shape}, got {(height, width, 3)}")
    if height * width > most_pixels:
        raise BadRequest(f"{field}: expected at most {most_pixels} pixels, got {height} x {width}")
    import simplejpeg

    try:
        pixels = simplejpeg.decode_jpeg(bytes(image.data), "RGB", strict=True)
    except ValueError as error:  # damaged: strict takes the decoder's warnings for what they are
        raise BadRequest(f"{field}: expected a jpeg that is whole: {' '.join(str(error).split())[:80]}") from error
    if pixels.shape != image.shape:
        raise BadRequest(f"{field}: expected {image.shape}, got {pixels.shape}")
    pixels.flags.writeable = False
    return pixels


def size(data: Buffer) -> tuple[int, int]:
    """Height and width, read from the markers alone. Raises ValueError unless it is a colour picture in one baseline
    frame and one scan, to its end."""
    data = bytes(data)
    if data[:2] != _BEGIN:
        raise ValueError("got other bytes")
    at, found = 2, None
    while at + 4 <= len(data):
        mark, kind, length = data[at], data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if mark != 0xFF or length < 2 or at + 2 + length > len(data):
            break
        if kind == _SCAN:
            end = _INSIDE_SCAN.search(data, at + 2 + length)
            if found is None or end is None or data[end.start() :] != _END:
                raise ValueError("got more than one scan, or no end")
            return found
        if kind in _FRAMES:
            if found or kind not in _BASELINE or length != 17 or data[at + 4] != 8 or data[at + 9] != 3:
                raise ValueError("got another kind of frame")
            found = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            if 0 in found:
                raise ValueError("got one without pixels")
        at += 2 + length
    raise ValueError("got damaged markers")
