"""The published weights' keys and shapes, from the lists beside this file."""

from __future__ import annotations

import json
import re
from pathlib import Path

LISTS = Path(__file__).parent / "published"
FAMILIES = ("pi0", "pi05")
RANGE = re.compile(r"\{0\.\.(\d+)\}")


def published(family: str, layers: int | None = None, vision_layers: int | None = None) -> dict[str, tuple[int, ...]]:
    """Key -> shape; `layers` and `vision_layers` cut the stacks short."""
    shapes = {}
    for line in (LISTS / f"{family}.txt").read_text().splitlines()[1:]:
        template, shape = line.split("\t")
        found = RANGE.search(template)
        cut = vision_layers if "vision_tower" in template else layers
        count = 1 if found is None else int(found[1]) + 1 if cut is None else cut
        for i in range(count):
            shapes[RANGE.sub(str(i), template)] = tuple(json.loads(shape))
    return shapes
