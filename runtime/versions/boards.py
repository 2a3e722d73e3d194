"""Robot computers as data: their published memory, and latencies that others have published for them.

None of these boards was at hand: nothing here was measured by us, and no figure here is of hotpolicy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """One inference of somebody else's program, as its authors report it. Not comparable across sources: views, steps,
    chunk and prompt differ."""

    model: str
    ms: float
    how: str  # program, precision, views
    source: str


@dataclass(frozen=True, slots=True)
class Board:
    """Memory is shared by processor and GPU."""

    name: str
    title: str
    memory_gb: float  # of the module's data sheet
    memory_source: str
    jetpacks: tuple[str, ...]  # that run on it, with a container file in launch/deploy
    power: str  # what NVIDIA calls its fastest power mode; the numbers are those of JetPack 6 (`nvpmodel -p --verbose`)
    published: tuple[Published, ...] = ()


FLASH_RT = "FlashRT README; arXiv 2606.20537"
VLA_CPP = "VinRobotics/vla.cpp v0.4.0; arXiv 2606.08094"
GR00T = "NVIDIA Isaac-GR00T, N1.7 deployment tables"
APX_INF = "infinigence ApxInf v0.1"
EAGER = "arXiv 2604.24447"

BOARDS = {
    board.name: board
    for board in (
        Board(
            "orin-nano-8",
            "Jetson Orin Nano 8 GB",
            8,
            "NVIDIA Jetson Orin Nano series data sheet",
            ("6",),
            "MAXN_SUPER, nvpmodel -m 2",
            (
                Published("GR00T N1.7", 272, "vla.cpp, Orin Nano Super", VLA_CPP),
                Published("SmolVLA", 464, "vla.cpp, Orin Nano Super (best 287)", VLA_CPP),
                Published("pi0", 846, "vla.cpp, Orin Nano Super", VLA_CPP),
            ),
        ),
        Board(
            "orin-nx-16",
            "Jetson Orin NX 16 GB",
            16,
            "NVIDIA Jetson Orin NX series data sheet DS-10712-001",
            ("6",),
            "MAXN_SUPER, nvpmodel -m 0",
        ),
        Board(
            "agx-orin-64",
            "Jetson AGX Orin 64 GB",
            64,
            "NVIDIA Jetson AGX Orin series technical brief v1.2",
            ("6",),
            "MAXN, nvpmodel -m 0",
            (
                Published("pi0.5", 124, "FlashRT, INT8, 2 views", FLASH_RT),
                Published("pi0.5", 193, "FlashRT, BF16, 2 views", FLASH_RT),
                Published("pi0.5", 165.7, "ApxInf, BF16, 10 steps", APX_INF),
                Published("pi0", 350, "vla.cpp (best 301)", VLA_CPP),
                Published("pi0", 921, "PyTorch, eager", EAGER),
                Published("pi0.5", 858.3, "PyTorch", "RhinoVLA, arXiv 2606.07383"),
                Published("GR00T N1.7", 150.9, "TensorRT, 4 steps, 1 view", GR00T),
                Published("GR00T N1.7", 354.0, "PyTorch, eager, 4 steps, 1 view", GR00T),
            ),
        ),
        Board(
            "agx-thor-128",
            "Jetson AGX Thor 128 GB",
            128,
            "NVIDIA Jetson Thor series data sheet",
            ("7",),
            "MAXN, nvpmodel -m 0",
            (
                Published("pi0.5", 39.8, "FlashRT, NVFP4, 2 views", FLASH_RT),
                Published("pi0.5", 44.0, "FlashRT, FP8, 2 views", FLASH_RT),
                Published("pi0.5", 41.2, "ApxInf, FP8, 2 views, 10 steps", APX_INF),
                Published("pi0", 246, "PyTorch, eager (compiled 163)", EAGER),
                Published("GR00T N1.7", 80.4, "TensorRT, 4 steps, 1 view", GR00T),
                Published("GR00T N1.7", 112.8, "PyTorch, eager, 4 steps, 1 view", GR00T),
            ),
        ),
    )
}
