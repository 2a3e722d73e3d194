"""Inputs to openpi's, LeRobot's and our transforms, made of whole numbers and fixed seeds: nobody stores them."""

from __future__ import annotations

import numpy as np

JOINTS, WIDTH, HORIZON, FRAMES = 7, 32, 5, 4
SIZES = {  # picture height and width -> the size of square it goes into
    (480, 640): 224, (640, 480): 56, (180, 320): 56, (300, 300): 56, (17, 23): 56, (1000, 41): 56, (56, 56): 56,
}  # fmt: skip
BUDGET = {"pi0": 48, "pi05": 200}
PROMPTS = (
    "pick up the red cube",
    "  put_the_cup\non the plate  ",
    "Open the TOP drawer!",
    "naïve café ☕ 把红色方块拿起来",
    "close the gripper slowly\n",
    "double  spaces and\ttabs",
    "a",
    "move 12 blocks, then 3 more; State: 5",
)


def picture(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: a ramp, hard edges, fine detail in a corner, where averaging and sampling part."""
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = (rows * 255 // height + columns * 255 // width) // 2
    disc = (2 * rows - height) ** 2 + (2 * columns - width) ** 2 < (min(height, width) // 2) ** 2
    detail = ((rows * 7 + columns * 13) ^ (rows * columns)) % 256
    corner = (rows < height // 4) & (columns < width // 4)
    red = np.where(corner, detail, np.where(disc, 220, ramp))
    green, blue = np.where(disc, 40, 255 - ramp), np.where(corner, 255 - detail, ramp // 2)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def numbers() -> dict[str, np.ndarray]:
    """State and actions in a robot's units, their statistics, what a model answered, which joints are relative."""
    rng = np.random.default_rng(11)
    low, high = rng.uniform(-90, -10, JOINTS), rng.uniform(10, 90, JOINTS)
    low[-1], high[-1] = 0.0, 1.0  # a gripper
    return {
        "state": rng.uniform(1.2 * low, 1.2 * high, (FRAMES, JOINTS)).astype(np.float32),
        "actions": rng.uniform(low, high, (FRAMES, HORIZON, JOINTS)).astype(np.float32),
        "answers": rng.standard_normal((FRAMES, HORIZON, WIDTH)).astype(np.float32),
        "mean": rng.uniform(low / 4, high / 4),
        "std": rng.uniform(0.1, 0.3, JOINTS) * (high - low),
        "q01": low,
        "q99": high,
        "mask": np.arange(JOINTS) < JOINTS - 1,
    }


def states() -> np.ndarray:
    """(prompts, joints) float32, normalised: inside, on the edges of bins, at and beyond the ends."""
    rng = np.random.default_rng(12)
    rows = rng.uniform(-1, 1, (len(PROMPTS), JOINTS)).astype(np.float32)
    rows[0] = (-1, 1, 0, -1.5, 1.5, 127 / 128, -127 / 128)
    rows[1] = np.arange(-3, 4) / 128
    return rows
