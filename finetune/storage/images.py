"""Camera frames on disk: PNG bytes, and mp4 whose frame times are exactly index / fps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from hotpolicy.runtime.errors import ConfigError, DatasetError

MAGIC = {b"\x89PNG": "png", b"\xff\xd8\xff": "mjpeg"}  # LeRobot writes PNG; datasets from elsewhere may embed JPEG
TOLERANCE = 1e-4  # s a frame may be off its place, as in LeRobot


@dataclass(frozen=True, slots=True)
class Codec:
    """How videos are encoded. A key frame every second frame keeps random access cheap."""

    encoder: str
    name: str  # as LeRobot names the stream
    options: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The codec's part of a video feature's "info" in info.json."""
        return {
            "video.codec": self.name,
            "video.pix_fmt": "yuv420p",
            "video.channels": 3,
            "video.g": int(self.options["g"]),
            "video.crf": int(self.options["crf"]),
            "video.preset": self.options["preset"],
            "has_audio": False,
            "is_depth_map": False,
        }


CODECS = {
    # about 60 % of the processor time of the other, with three times the bytes
    "h264": Codec("libx264", "h264", {"g": "2", "crf": "23", "preset": "veryfast", "bf": "0"}),
    # LeRobot's own settings
    "av1": Codec("libsvtav1", "av1", {"g": "2", "crf": "30", "preset": "12", "svtav1-params": "fast-decode=0"}),
}


def codec_named(name: str) -> Codec:
    """Raises ConfigError for a codec we do not write."""
    if name not in CODECS:
        raise ConfigError(f"codec: expected one of {', '.join(CODECS)}, got {name!r}")
    return CODECS[name]


def to_png(image: np.ndarray) -> bytes:
    """Compress a (height, width, 3) uint8 image without loss."""
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def from_png(content: bytes) -> np.ndarray:
    """The (height, width, 3) uint8 image in PNG or JPEG bytes. Raises DatasetError when they are neither, or torn."""
    kind = next((name for magic, name in MAGIC.items() if content.startswith(magic)), None)
    if kind is None:
        raise DatasetError(f"image: expected PNG or JPEG bytes, got {content[:4]!r}")
    decoder = av.CodecContext.create(kind, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    try:
        frames = [*decoder.decode(av.Packet(content)), *decoder.decode(None)]
    except av.FFmpegError as error:
        raise DatasetError(f"image: {kind} of {len(content)} bytes cannot be decoded ({error})") from error
    if len(frames) != 1:
        raise DatasetError(f"image: expected one {kind} frame, got {len(frames)}")
    return frames[0].to_ndarray(format="rgb24")


class VideoWriter:
    """Encodes frames into an mp4 as they come, so that an episode of any length needs little memory."""

    def __init__(self, path: Path, height: int, width: int, fps: int, codec: Codec):
        self.path = path
        self.frames = 0
        self._container = av.open(str(path), "w", format="mp4")
        stream = self._container.add_stream(codec.encoder, rate=fps, options=dict(codec.options))
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, fps)
        self._stream.codec_context.thread_count = 1  # the control loop lives on the other cores

    def add(self, image: np.ndarray) -> None:
        """Encode one (height, width, 3) uint8 frame."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = self.frames, self._stream.codec_context.time_base
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        """Finish the file; without it the mp4 cannot be read."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Let go of an unfinished file; harmless after `close`."""
        with contextlib.suppress(av.FFmpegError, OSError):  # a full disk: nothing of it is wanted anyway
            self._container.close()
        self.path.unlink(missing_ok=True)


def count_frames(path: Path) -> int:
    """Frames that an mp4's own index counts. Raises FFmpegError when it is torn."""
    with av.open(str(path)) as container:
        return container.streams.video[0].frames


def read_video(path: Path, start: float, times: Sequence[float]) -> np.ndarray:
    """The frames of one episode inside an mp4: (frames, height, width, 3) uint8. See `walk_video`."""
    return np.stack(list(walk_video(path, start, times)))


def walk_video(path: Path, start: float, times: Sequence[float]) -> Iterator[np.ndarray]:
    """The frames of one episode inside an mp4, one by one: (height, width, 3) uint8.

    `start` is the episode's first moment in the file and `times` are its frames' moments after that, in s, evenly
    spaced. Raises DatasetError when the file is missing, torn, or has no frame at one of them.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: missing")
    wanted = [start + time for time in times]
    found = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            container.seek(int(max(0.0, start) / stream.time_base), stream=stream, backward=True)
            for image in _frames_at(container.decode(stream), wanted):
                found += 1
                yield image
    except (av.FFmpegError, IndexError) as error:
        raise DatasetError(f"{path}: expected a whole mp4 ({getattr(error, 'strerror', None) or error})") from error
    if found < len(wanted):
        raise DatasetError(f"{path}: expected a frame at {wanted[found]:.4f} s, found none")


def _frames_at(frames: Any, wanted: Sequence[float]) -> Iterator[np.ndarray]:
    found = 0
    for frame in frames:
        late = frame.time - wanted[found]
        if late > TOLERANCE:
            return
        if late >= -TOLERANCE:  # earlier ones lead up to the episode from the key frame before it
            found += 1
            yield frame.to_ndarray(format="rgb24")
        if found == len(wanted):
            return
