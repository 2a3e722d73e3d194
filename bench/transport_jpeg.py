"""The last table of bench/transport.py: what JPEG costs on pictures of the virtual arm."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from closed_loop import Asker, measure, own_memory, summary
from null_policy import HORIZON, JOINTS, OBSERVATIONS, SIZES
from transport_subjects import address, start

from hotpolicy.runtime import pictures
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.messages import Observation

QUALITIES = (80, 95)


def pictures_of_the_arm(noise: float) -> list[Observation]:
    """The virtual arm's table, 640x480, as three cameras with noise of their own; `noise` is its standard deviation."""
    from hotpolicy.robots.sim.scene import COLOURS, Scene  # late: nothing else here needs a simulator

    scene, random = Scene(image_size=640), np.random.default_rng(0)
    state = np.zeros(JOINTS, np.float32)
    taken = []
    for turn in range(OBSERVATIONS):
        cubes = {colour: (0.2 + 0.02 * n, 0.05 * n - 0.12, 0.3 * turn) for n, colour in enumerate(COLOURS)}
        scene.reset(np.array([0.1 * turn, 0.2, 1.0, 0.5, 0.0, 0.02]), cubes)
        picture = scene.image()[80:560].astype(np.float32)
        images = {
            name: np.clip(picture + random.normal(0, noise, picture.shape), 0, 255).astype(np.uint8)
            for name, _, _ in SIZES["L"]
        }
        taken.append(Observation(images, state, "pick up the red cube and put it into the box"))
    return taken


def jpeg(rounds: int, requests: int) -> list[dict[str, Any]]:
    """What three pictures of the virtual arm cost as JPEG: encoding, decoding, bytes and error of one, and the round
    trip over tcp beside the same three as they are, in rounds interleaved."""
    endpoint, rows = address("native-tcp", "", "L"), []
    server = start("native-tcp", "L", endpoint)
    try:
        for noise in (0.0, 5.0):
            seen, trips = pictures_of_the_arm(noise), {quality: [] for quality in (0, *QUALITIES)}  # type: ignore[var-annotated]
            for _ in range(rounds):
                for quality, found in trips.items():
                    with PolicyClient(endpoint, timeout_s=30.0, jpeg=quality or None) as client:
                        client.wait_ready(30)

                        def call(observation: Observation, client: PolicyClient = client) -> None:
                            assert client.infer(observation).actions.shape == (HORIZON, JOINTS)

                        found.append(measure(Asker(call, own_memory()), seen, requests, server.pid or 0))
            for quality, found in trips.items():
                one = summary(found, trips[0])
                trip = {"p50": one["p50"], "x_p50": one["x_p50"], "server_cpu": one["server_cpu"]}
                rows.append({"noise": noise, "quality": quality, **trip, **codec_cost(seen, quality)})
    finally:
        server.terminate()
        server.join()
    return rows


def codec_cost(seen: list[Observation], quality: int) -> dict[str, float]:
    """Of one picture: encoding and decoding in us (medians), bytes, mean error in grey levels."""
    images = [image for observation in seen for image in observation.images.values()]
    if not quality:
        return {"encode": 0.0, "decode": 0.0, "bytes": float(images[0].nbytes), "error": 0.0}
    encode, decode, size, error = [], [], [], []
    for image in images:
        began = time.perf_counter()
        packed = pictures.encode(image, quality)
        encoded = time.perf_counter()
        pixels = pictures.decode(packed, image.size)
        encode.append(1e6 * (encoded - began))
        decode.append(1e6 * (time.perf_counter() - encoded))
        size.append(len(packed.data))
        error.append(float(np.abs(pixels.astype(np.int16) - image).mean()))
    medians = (statistics.median(values) for values in (encode, decode, size, error))
    return dict(zip(("encode", "decode", "bytes", "error"), medians, strict=True))
