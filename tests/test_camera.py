"""Cameras against a live stream, files and devices that are not there."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from hotpolicy.robots.camera import LiveCamera, open_camera
from hotpolicy.robots.robot import Camera, Frame
from hotpolicy.runtime.errors import CameraLost, ConfigError

HEIGHT, WIDTH = 48, 64
RED = (200, 40, 20)  # RGB


def picture(number: int) -> np.ndarray:
    """Red, with `number` written as eight black or white blocks along the lower edge; RGB."""
    image = np.full((HEIGHT, WIDTH, 3), RED, np.uint8)
    for bit in range(8):
        image[-8:, 8 * bit : 8 * bit + 8] = 255 if number >> bit & 1 else 0
    return image


def number_in(image: np.ndarray) -> int:
    return sum(1 << bit for bit in range(8) if image[-4, 8 * bit + 4].mean() > 127)


class Stream(ThreadingHTTPServer):
    """An MJPEG camera on 127.0.0.1: 50 frames a second, numbered; stalls and hangs up on command."""

    daemon_threads = True
    shape = (HEIGHT, WIDTH)  # of what it shows

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Pictures)
        self.flow = threading.Event()  # cleared: no more frames, the connection stays
        self.flow.set()
        self.cut = threading.Event()
        self.number = 0
        self.watchers = 0
        self.url = f"http://127.0.0.1:{self.server_port}/camera.mjpg"


class Pictures(BaseHTTPRequestHandler):
    server: Stream

    def do_GET(self) -> None:
        self.server.watchers += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            while not self.server.cut.wait(0.02):
                self.server.flow.wait(10)
                self.server.number = (self.server.number + 1) % 256
                image = cv2.resize(picture(self.server.number), self.server.shape[::-1])
                jpeg = cv2.imencode(".jpg", image[:, :, ::-1])[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
        except ConnectionError:
            pass  # the camera was closed
        self.server.watchers -= 1

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stream() -> Iterator[Stream]:
    with Stream() as stream:
        thread = threading.Thread(target=stream.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield stream
        stream.cut.set()
        stream.flow.set()
        stream.shutdown()
        thread.join()


@pytest.fixture
def camera(stream: Stream) -> Iterator[LiveCamera]:
    camera = open_camera("front", stream.url, HEIGHT, WIDTH)
    yield camera
    camera.close()


def lost(camera: Camera, within_s: float = 10.0) -> str:
    """What the camera says once it is lost."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            camera.read()
        except CameraLost as error:
            return str(error)
        time.sleep(0.01)
    raise AssertionError("still seeing")


def found(camera: Camera, within_s: float = 10.0) -> Frame:
    """The first frame once it sees again."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            return camera.read()
        except CameraLost:
            time.sleep(0.02)
    raise AssertionError("not found again")


def test_a_frame_is_rgb_of_the_size_asked_for(camera: LiveCamera) -> None:
    frame = camera.read()
    assert (frame.image.shape, frame.image.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert abs(frame.image[:30].astype(int) - RED).max() < 12  # JPEG
    assert not frame.image.flags.writeable
    assert 0 <= time.monotonic() - frame.captured_at < 1


def test_only_the_newest_frame_is_kept(stream: Stream, camera: LiveCamera) -> None:
    first = camera.read()
    assert first.image is camera.read().image or camera.frames > 1  # reading uses nothing up
    time.sleep(0.6)  # some thirty frames nobody read
    stream.flow.clear()
    time.sleep(0.3)
    assert number_in(camera.read().image) == stream.number
    assert camera.read().captured_at > first.captured_at
    stream.flow.set()


def test_a_stalled_stream_is_lost_and_found(stream: Stream, camera: LiveCamera) -> None:
    stream.flow.clear()
    text = lost(camera)
    assert text.startswith(f"camera front ({stream.url}): expected a frame of the last 0.5 s, got one 0.")
    stream.flow.set()
    assert found(camera)


def test_a_stream_that_ends_is_lost_at_once(stream: Stream) -> None:
    camera = open_camera("front", stream.url, HEIGHT, WIDTH, max_age_s=60)
    stream.cut.set()
    assert lost(camera).endswith("expected another frame, the device is gone or the stream ended")
    camera.close()
    assert lost(camera).endswith("the stream ended")  # the reason stays


def test_a_camera_that_went_away_is_opened_again(stream: Stream, camera: LiveCamera) -> None:
    before = camera.frames
    stream.cut.set()
    assert lost(camera).endswith("the device is gone or the stream ended")
    stream.cut.clear()
    assert found(camera).captured_at > 0
    assert (camera.losses, camera.frames > before) == (1, True)


def test_a_camera_that_comes_back_otherwise_is_refused_for_good(stream: Stream, camera: LiveCamera) -> None:
    stream.cut.set()
    lost(camera)
    stream.shape = (HEIGHT * 2, WIDTH * 2)
    stream.cut.clear()
    deadline = time.monotonic() + 10
    while f"got {HEIGHT * 2}x{WIDTH * 2}x3" not in lost(camera) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert f"expected {HEIGHT}x{WIDTH}x3" in lost(camera)


def test_a_slow_camera_never_slows_its_reader(stream: Stream, camera: LiveCamera) -> None:
    stream.flow.clear()  # the device thread now waits in its read
    time.sleep(0.1)
    started = time.monotonic()
    for _ in range(1000):
        with contextlib.suppress(CameraLost):
            camera.read()
    assert time.monotonic() - started < 0.5
    stream.flow.set()


def test_another_size_is_refused(stream: Stream) -> None:
    with pytest.raises(ConfigError) as caught:
        open_camera("front", stream.url, 224, 224)
    assert f"camera front ({stream.url}): expected 224x224x3" in str(caught.value)
    assert f"got {HEIGHT}x{WIDTH}x3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_closing_ends_the_thread_and_the_connection(stream: Stream, camera: LiveCamera) -> None:
    camera.close()
    camera.close()
    assert not any(thread.name == "camera-front" for thread in threading.enumerate())
    with pytest.raises(CameraLost, match="expected an open camera, it was closed"):
        camera.read()
    deadline = time.monotonic() + 10
    while stream.watchers and time.monotonic() < deadline:
        time.sleep(0.02)
    assert stream.watchers == 0


def test_two_cameras(stream: Stream, camera: LiveCamera) -> None:
    wrist = open_camera("wrist", stream.url, HEIGHT, WIDTH)
    assert (camera.read().image.shape, wrist.read().image.shape) == ((HEIGHT, WIDTH, 3),) * 2
    wrist.close()
    assert camera.read()


def test_a_server_that_shows_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        started = time.monotonic()
        with pytest.raises(CameraLost, match=r"camera front \(http://127.*\): expected a first frame within 0.3 s"):
            open_camera("front", url, HEIGHT, WIDTH, open_s=0.3)
        assert time.monotonic() - started < 5


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Ten numbered frames at 50 a second."""
    file = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 50.0, (WIDTH, HEIGHT))
    for number in range(10):
        writer.write(np.ascontiguousarray(picture(number)[:, :, ::-1]))
    writer.release()
    return file


def test_a_file_plays_at_its_own_rate_and_again(film: Path) -> None:
    camera = open_camera("front", str(film), HEIGHT, WIDTH)
    seen = set()
    started = time.monotonic()
    while camera.frames < 30 and time.monotonic() < started + 10:
        seen.add(number_in(camera.read().image))
        time.sleep(0.005)
    took = time.monotonic() - started
    camera.close()
    assert camera.frames >= 30
    assert took > 0.4  # 0.6 s of film
    assert {2, 3, 4, 5, 6, 7} <= seen <= set(range(10))


def test_a_file_that_is_no_film(tmp_path: Path) -> None:
    file = tmp_path / "notes.mp4"
    file.write_bytes(b"not a film" * 100)
    with pytest.raises(CameraLost, match="expected a camera or video there, it cannot be opened"):
        open_camera("front", str(file), HEIGHT, WIDTH)


# Nothing there --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [63, "63", "/dev/video63", "/dev/v4l/by-id/usb-none-video-index0", "film.mp4"])
def test_an_absent_device_is_named(source: str | int) -> None:
    place = "/dev/video63" if source in (63, "63") else source
    with pytest.raises(CameraLost) as caught:
        open_camera("wrist", source, HEIGHT, WIDTH)
    assert str(caught.value).startswith(
        f"camera wrist ({place}): expected a device, file or URL, there is none; found "
    )


def test_a_device_that_is_no_camera(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CameraLost, match=r"camera wrist \(/dev/null\): expected a camera or video there"):
        open_camera("wrist", "/dev/null", HEIGHT, WIDTH)
    assert capfd.readouterr().err == ""


def test_nobody_listens_there() -> None:
    with pytest.raises(CameraLost, match=r"camera wrist \(http://127.0.0.1:9/\): expected a camera or video there"):
        open_camera("wrist", "http://127.0.0.1:9/", HEIGHT, WIDTH)


def test_without_opencv(monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"camera front .* needs OpenCV: pip install 'hotpolicy\[robots\]'"):
        open_camera("front", str(film), HEIGHT, WIDTH)
