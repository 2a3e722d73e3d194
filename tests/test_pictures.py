"""JPEG on the wire: what is decoded, and what is refused before anything of its claimed size is made."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import LevelPolicy, TinyControl, TinySlot, observation

from hotpolicy.runtime import pictures, wire
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.errors import BadRequest, ConfigError
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.wire import Encoded

HEIGHT, WIDTH = 48, 64


def scene() -> np.ndarray:
    """(48, 64, 3) uint8: a smooth picture with an edge."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([4 * x, 5 * y, np.where(x > 30, 200, 40)], -1).astype(np.uint8)


def packed(**options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(scene()).save(file, "jpeg", quality=90, **options)  # type: ignore[arg-type]
    return file.getvalue()


GOOD = bytes(pictures.encode(scene(), 90).data)


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    slot = TinySlot(LevelPolicy())
    with PolicyServer(ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.5), slot, TinyControl(slot)) as serving:
        serving.wait_ready(10)
        yield serving


def seen(image: object, task: str = "echo") -> Observation:
    return Observation({"front": image}, np.zeros(6, np.float32), task)  # type: ignore[dict-item]


@pytest.mark.parametrize("jpeg", [95, {"front": 95}, {"other": 95}, None])
def test_a_server_decodes_what_a_client_encodes(server: PolicyServer, jpeg: object) -> None:
    with PolicyClient(server.endpoint, timeout_s=5.0, jpeg=jpeg) as client:  # type: ignore[arg-type]
        assert client.hello().jpeg
        for value in (0, 77, 255):
            image = np.full((HEIGHT, WIDTH, 3), value, np.uint8)
            assert abs(client.infer(seen(image)).actions[0, 0] - value) <= 2
        assert np.isfinite(client.infer(seen(observation(3).images["front"][:, ::-1])).actions).all()
        with pytest.raises(BadRequest, match=r"^image"):
            client.infer(seen(None))


def test_pixels_and_bytes() -> None:
    image = scene()
    sent = pictures.encode(image, 90)
    assert len(sent.data) < image.nbytes / 4
    frames = [bytes(frame) for frame in wire.encode({"v": 1, "images": {"front": sent}})]
    found = wire.decode(frames)["images"]["front"]
    assert isinstance(found, Encoded)
    pixels = pictures.decode(found, image.size)
    assert np.abs(pixels.astype(int) - image).mean() < 4
    assert not pixels.flags.writeable
    for options in ({}, {"optimize": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}):
        assert pictures.size(packed(**options)) == (HEIGHT, WIDTH)


def claimed(height: int, width: int, data: bytes = GOOD) -> bytes:
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 9 :]


def scan(data: bytes) -> int:
    return data.index(b"\xff\xda")


WRONG = {
    "empty": b"",
    "text": b"a picture, I swear",
    "png": b"\x89PNG\r\n\x1a\n" + b"0" * 100,
    "cut in the header": GOOD[:200],
    "cut in the scan": GOOD[:-40],
    "no end": GOOD[:-2],
    "more behind the end": GOOD + b"x",
    "two pictures": GOOD + GOOD,
    "progressive": packed(progressive=True),
    "many scans": GOOD[:-2] + GOOD[scan(GOOD) : scan(GOOD) + 14] * 1000 + b"\xff\xd9",
    "two frames": GOOD[:2] + GOOD[GOOD.index(b"\xff\xc0") : GOOD.index(b"\xff\xc0") + 19] + GOOD[2:],
    "bomb": claimed(65535, 65535),
    "no pixels": claimed(0, 64),
    "other shape": claimed(64, 48),
    "larger": claimed(HEIGHT + 16, WIDTH),
    "padded": GOOD[:2] + b"\xff\xfe\xff\xff" + bytes(65533) + GOOD[2:],
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_such_picture_is_refused_by_name(server: PolicyServer, what: str) -> None:
    with PolicyClient(server.endpoint, timeout_s=5.0) as client:
        sent = Encoded("jpeg", (HEIGHT, WIDTH, 3), WRONG[what])
        with pytest.raises(BadRequest, match=r"^images\.front: expected"):
            client.infer(seen(sent))
        assert client.infer(observation()).version == "v1"


@pytest.mark.parametrize("shape", [(65535, 65535, 3), (48, 64), (48, 64, 4), (), (0, 0, 3)])
def test_a_claimed_shape_must_be_the_pictures(server: PolicyServer, shape: tuple[int, ...]) -> None:
    with (
        PolicyClient(server.endpoint, timeout_s=5.0) as client,
        pytest.raises(BadRequest, match=r"^images\.front: expected"),
    ):
        client.infer(seen(Encoded("jpeg", shape, GOOD)))


def test_a_bomb_never_reaches_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    for shape, data in (((65535, 65535, 3), claimed(65535, 65535)), ((48, 64, 3), WRONG["many scans"])):
        with pytest.raises(BadRequest):
            pictures.decode(Encoded("jpeg", shape, data), HEIGHT * WIDTH)


def test_a_camera_nobody_knows(server: PolicyServer) -> None:
    images = {"back": Encoded("jpeg", (HEIGHT, WIDTH, 3), GOOD)}
    with (
        PolicyClient(server.endpoint, timeout_s=5.0) as client,
        pytest.raises(BadRequest, match=r"^images\.back: this policy knows no such camera"),
    ):
        client.infer(Observation(images, np.zeros(6, np.float32), "t"))  # type: ignore[arg-type]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_pictures_are_decoded_whole_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = pictures.decode(Encoded("jpeg", (HEIGHT, WIDTH, 3), bytes(damaged)), HEIGHT * WIDTH)
    except BadRequest:
        return
    assert pixels.shape == (HEIGHT, WIDTH, 3)


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_garbage_is_refused(data: bytes) -> None:
    for found in (data, b"\xff\xd8" + data, GOOD[:100] + data):
        with pytest.raises(BadRequest):
            pictures.decode(Encoded("jpeg", (HEIGHT, WIDTH, 3), found), HEIGHT * WIDTH)


def test_a_picture_that_ends_anywhere_is_refused() -> None:
    for end in range(len(GOOD)):
        with pytest.raises(BadRequest):
            pictures.decode(Encoded("jpeg", (HEIGHT, WIDTH, 3), GOOD[:end]), HEIGHT * WIDTH)


@pytest.mark.parametrize("jpeg", [0, 101, 9.5, True, {"front": 0}, {"front": "high"}])
def test_a_quality_that_is_none(jpeg: object) -> None:
    with pytest.raises(ConfigError, match=r"jpeg.*: expected a quality from 1 to 100"):
        PolicyClient("tcp://127.0.0.1:9", jpeg=jpeg)  # type: ignore[arg-type]


def test_without_the_package(server: PolicyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "READABLE", False)
    with pytest.raises(ConfigError, match="jpeg: expected the package simplejpeg"):
        PolicyClient(server.endpoint, jpeg=80)
    with PolicyClient(server.endpoint, timeout_s=5.0) as client:
        assert not client.hello().jpeg
        with pytest.raises(BadRequest, match=r"^images\.front: this server reads no jpeg"):
            client.infer(seen(Encoded("jpeg", (HEIGHT, WIDTH, 3), GOOD)))
