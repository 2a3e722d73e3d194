"""Run LeRobot's real-time chunking, its weights and its guided pi0 and pi0.5; keep the answers in `rtc/lerobot.npz`.

    HF_HUB_OFFLINE=1 python tests/golden/make_rtc.py        (in LeRobot's environment: see README.md)

The models and their inputs are those of `pi0/FAMILY_small.npz`; what was promised is the file's `actions`, of which the
robot has the first JOINTS: LeRobot pads with zeros.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import lerobot_pi0
import numpy as np
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from make_pi0 import LIBRARIES, THREADS, Reference, case, inputs
from torch import Tensor

HERE = Path(__file__).parent / "rtc"
SCHEDULES = ("zeros", "ones", "linear", "exp")
HORIZONS = (1, 8, 10)
COUNTS = (0, 1, 3, 7, 10, 12)  # delays and execution horizons, also beyond a chunk
JOINTS = 7  # of 32
# schedule, delay, execution horizon, maximum guidance weight (no more than the number of steps), steps
SAMPLES = (
    ("zeros", 3, 6, 10.0, 10),
    ("ones", 3, 6, 10.0, 10),
    ("linear", 3, 6, 10.0, 10),
    ("exp", 3, 6, 10.0, 10),
    ("exp", 0, 10, 2.5, 10),
    ("linear", 2, 8, 5.0, 5),
)


def main() -> None:
    torch.set_num_threads(THREADS)
    HERE.mkdir(exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    kept = {"versions": np.array(json.dumps(versions)), "samples": np.array(json.dumps(SAMPLES)), **_weights()}
    for family, pi05 in (("pi0", False), ("pi05", True)):
        kept[family] = torch.stack([_sample(pi05, *sample) for sample in SAMPLES]).numpy()
        print(f"{family}: |action| up to {np.abs(kept[family]).max():.2f}")
    np.savez_compressed(HERE / "lerobot.npz", **kept)


def _weights() -> dict[str, np.ndarray]:
    """Of every schedule, for every `case` (delay, execution horizon, horizon); the places beyond a horizon are NaN."""
    cases = [(delay, end, total) for delay in COUNTS for end in COUNTS for total in HORIZONS]
    kept = {"cases": np.array(cases)}
    for name in SCHEDULES:
        rows = np.full((len(cases), max(HORIZONS)), np.nan, np.float32)
        for row, (delay, end, total) in zip(rows, cases, strict=True):
            row[:total] = _processor(name).get_prefix_weights(delay, end, total)[:total].numpy()
        kept[f"weights_{name}"] = rows
    return kept


def _processor(schedule: str, limit: float = 10.0) -> RTCProcessor:
    return RTCProcessor(
        RTCConfig(prefix_attention_schedule=RTCAttentionSchedule(schedule.upper()), max_guidance_weight=limit)
    )


@torch.no_grad()
def _sample(pi05: bool, schedule: str, delay: int, execution_horizon: int, limit: float, steps: int) -> Tensor:
    made = case("small", pi05)
    made = dataclasses.replace(made, config={**made.config, "steps": steps})
    given = {name: torch.from_numpy(array) for name, array in inputs(made).items()}
    model = lerobot_pi0.build(made.config, made.seed)
    model.rtc_processor = _processor(schedule, limit)
    model.config.rtc_config = model.rtc_processor.rtc_config
    reference = Reference(model, pi05, given)
    return model.sample_actions(
        *reference.seen,
        *reference.state,
        noise=given["noise"],
        inference_delay=delay,
        prev_chunk_left_over=given["actions"][..., :JOINTS],
        execution_horizon=execution_horizon,
    )


if __name__ == "__main__":
    main()
