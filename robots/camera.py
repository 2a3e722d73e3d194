"""Real cameras through OpenCV: a thread that keeps only the newest frame, so that the control loop never waits for one.

What is asked for is what comes, or an error: no other size, no other device, no made-up picture. A camera that was
unplugged, or a stream that ended, is opened again, more patiently each time; until it shows a picture again, `read`
says what happened.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hotpolicy.robots.robot import Frame
from hotpolicy.runtime.clock import Rate, now
from hotpolicy.runtime.errors import CameraLost, ConfigError, HotpolicyError

if TYPE_CHECKING:
    import cv2

log = logging.getLogger(__name__)

SILENCE_MS = 2000  # without a byte for this long a stream counts as ended
RELEASE_S = 3.0  # a device that does not let go within this keeps its thread, which ends with the program
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 4.0  # between two tries to open a lost camera; doubled each time


class LiveCamera:
    """Implements robots.robot.Camera. Make one with `open_camera`; `read` and `close` may be called from any thread."""

    def __init__(self, name: str, source: str, size: tuple[int, int], max_age_s: float):
        self.name = name
        self.source = source
        self.size = size  # height, width
        self.max_age_s = max_age_s
        self.frames = 0  # captured so far
        self.losses = 0  # times the device went away, or the stream ended
        self._newest: Frame | None = None
        self._fault: HotpolicyError | None = None  # why there are no frames now
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"camera-{name}", daemon=True)
        self._thread.start()

    def wait_first(self, timeout_s: float) -> None:
        """Return once there is a frame. Raises CameraLost, or ConfigError when it has another size."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._fault, timeout_s)
            if self._fault:
                raise self._fault
            if self._newest is None:
                raise CameraLost(f"{self._label}: expected a first frame within {timeout_s:g} s, none came")

    def read(self) -> Frame:
        """The newest frame, RGB, and when it was captured; the image is read-only. Never waits. Raises CameraLost when
        it is older than `max_age_s`, and at once when the device is gone; once it is back, frames are."""
        with self._changed:
            newest, fault = self._newest, self._fault
        if fault:
            raise CameraLost(str(fault)) from fault
        if newest is None:
            raise CameraLost(f"{self._label}: expected a frame, none came yet")
        age = now() - newest.captured_at
        if age > self.max_age_s:
            raise CameraLost(
                f"{self._label}: expected a frame of the last {self.max_age_s:g} s, got one {age:.2f} s old"
            )
        return newest

    def close(self) -> None:
        """End the thread and give the device back; more than once is harmless."""
        self._stop.set()
        self._thread.join(RELEASE_S)
        if self._thread.is_alive():
            log.warning("%s: the device does not let go", self._label)
        with self._changed:
            self._fault = self._fault or CameraLost(f"{self._label}: expected an open camera, it was closed")
            self._changed.notify_all()

    @property
    def _label(self) -> str:
        return f"camera {self.name} ({self.source})"

    def _run(self) -> None:
        """The only thread that touches the device: some block in opening, some in reading, some in closing."""
        pause = FIRST_PAUSE_S
        while not self._stop.is_set():
            before = self.frames
            try:
                self._watch()
            except ConfigError as error:  # another size: no patience mends that
                return self._lose(error, seen=False)
            except CameraLost as error:
                self._lose(error, seen=self.frames > before)
            if self.frames == 0:
                return  # it never worked: whoever opens it is told so
            pause = FIRST_PAUSE_S if self.frames > before else min(2 * pause, LONGEST_PAUSE_S)
            self._stop.wait(pause)

    def _watch(self) -> None:
        """Open the device and keep its newest frame until closed. Raises CameraLost, ConfigError."""
        import cv2

        try:
            for image, captured_at in self._images():
                if self._stop.is_set():
                    return  # closed while the device was waited for
                with self._changed:
                    self._newest, self._fault = Frame(image, captured_at), None
                    self.frames += 1
                    self._changed.notify_all()
        except cv2.error as error:
            raise CameraLost(f"{self._label}: {' '.join(str(error).split())}") from error

    def _lose(self, fault: HotpolicyError, seen: bool) -> None:
        if seen:
            self.losses += 1
            log.warning("%s; trying to open it again", fault)
        with self._changed:
            self._fault = fault
            self._changed.notify_all()

    def _images(self) -> Iterator[tuple[np.ndarray, float]]:
        """Frames as they come, until closed. Raises CameraLost when there are no more, ConfigError for another size."""
        import cv2

        capture = self._open()
        is_file = Path(self.source).is_file()
        # A file would play as fast as it can be decoded.
        rate = Rate(capture.get(cv2.CAP_PROP_FPS) or 30.0) if is_file else None
        try:
            while not self._stop.is_set():
                taken = capture.grab() or (is_file and capture.set(cv2.CAP_PROP_POS_FRAMES, 0) and capture.grab())
                captured_at = now()  # before decoding: the moment of the picture, as near as it can be known
                decoded, image = capture.retrieve() if taken else (False, None)
                if not decoded or image is None:
                    raise CameraLost(f"{self._label}: expected another frame, the device is gone or the stream ended")
                yield self._checked(image), captured_at
                if rate:
                    rate.wait()
        finally:
            capture.release()

    def _open(self) -> cv2.VideoCapture:
        import cv2

        if self.source.startswith("/dev/"):
            # The device is asked for the size; whether it listened is seen from the first frame.
            capture = cv2.VideoCapture(self.source, cv2.CAP_V4L2)
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self.size[0])
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, self.size[1])
        else:
            patience = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, SILENCE_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, SILENCE_MS]
            capture = cv2.VideoCapture(self.source, cv2.CAP_FFMPEG, patience)
        if not capture.isOpened():
            raise CameraLost(f"{self._label}: expected a camera or video there, it cannot be opened")
        return capture

    def _checked(self, image: np.ndarray) -> np.ndarray:
        """As read-only RGB."""
        import cv2

        height, width = self.size
        if image.shape != (height, width, 3) or image.dtype != np.uint8:
            got = "x".join(map(str, image.shape))
            raise ConfigError(
                f"{self._label}: expected {height}x{width}x3 (height, width, colours) uint8, got {got} {image.dtype}; "
                "set the profile to what the camera gives: images are not resized here"
            )
        rgb: np.ndarray = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        rgb.flags.writeable = False  # every reader of this frame gets this array
        return rgb


def open_camera(
    name: str, source: str | int, height: int, width: int, max_age_s: float = 0.5, open_s: float = 5.0
) -> LiveCamera:
    """A camera that has shown its first frame. `source`: a number (0 is /dev/video0), a device, a video file (played at
    its own rate, again and again), or an http URL of a stream. `max_age_s`: older frames are refused.

    Raises ConfigError (no OpenCV, another size), CameraLost (nothing there, no frame within `open_s` s).
    """
    place = f"/dev/video{source}" if str(source).isdecimal() else str(source)
    label = f"camera {name} ({place})"
    if "://" not in place and not Path(place).exists():
        there = ", ".join(sorted(str(device) for device in Path("/dev").glob("video*"))) or "no /dev/video*"
        raise CameraLost(f"{label}: expected a device, file or URL, there is none; found {there}")
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(f"{label}: needs OpenCV: pip install 'hotpolicy[robots]'") from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # what it warns of is raised from here
    camera = LiveCamera(name, place, (height, width), max_age_s)
    try:
        camera.wait_first(open_s)
    except HotpolicyError:
        camera.close()
        raise
    return camera
