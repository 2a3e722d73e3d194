"""Our pi0 in eager torch against LeRobot's: one process, the same weights, the same threads, in turn.

    HF_HUB_OFFLINE=1 PYTHONPATH=.types python bench/model.py [--family pi05] [--threads 2] [--rounds 7]

in LeRobot's environment (tests/golden/README.md says how to make it); ours needs nothing more than its torch. The
model is of middle size (about 270 M parameters, in pi0's proportions), fp32; three camera slots of which one is
masked and 20 of 48 prompt tokens used (unless told otherwise), 50 actions, 10 steps. Prints medians (and fastest) of
prefix, step and the whole, ours as a part of LeRobot's, and how far the actions differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent / "tests" / "golden"))

import lerobot_pi0
from lerobot.policies.common.flow_matching import euler_integrate
from middle import middle

from hotpolicy.runtime.model.pi0 import Pi0, Pi0Config
from hotpolicy.runtime.model.weights import published_to_ours

BAR = 0.65  # of LeRobot's time
EQUAL = 2e-5  # of actions up to about 5
CAMERAS, PROMPT = 3, 48
SEED = 0


def ours_with_the_weights_of(theirs: torch.nn.Module, config: Pi0Config) -> Pi0:
    """The very same memory, under our names."""
    tensors = theirs.state_dict()
    plan = published_to_ours(tensors)
    assert plan.complete, (plan.unknown, plan.missing)
    with torch.device("meta"):
        model = Pi0(config)
    model.load_state_dict({name: tensors[key] for key, name in plan.names.items()}, assign=True)
    return model.eval().requires_grad_(False)


def frame(config: Pi0Config, present: int, used: int) -> dict[str, Tensor]:
    make, size = torch.Generator().manual_seed(SEED), config.vision.image_size
    return {
        "images": torch.randint(0, 256, (1, CAMERAS, size, size, 3), dtype=torch.uint8, generator=make),
        "image_mask": torch.arange(CAMERAS)[None] < present,
        "tokens": torch.randint(1, config.vocabulary, (1, PROMPT), generator=make),
        "token_mask": torch.arange(PROMPT)[None] < used,
        "state": torch.randn(1, config.action_dim, generator=make),
        "noise": torch.randn(1, config.horizon, config.action_dim, generator=make),
    }


class Ours:
    def __init__(self, model: Pi0, given: Mapping[str, Tensor]):
        self.model, self.given = model, given
        self.schedule = model.schedule()  # once per version of the weights, as the engine does

    def prefix(self) -> Any:
        return self.model.prefix(*(self.given[name] for name in ("images", "image_mask", "tokens", "token_mask")))

    def flow(self, prefix: Any) -> Tensor:
        return self.model.flow(prefix, self.given["state"], self.given["noise"], self.schedule)

    def whole(self) -> Tensor:
        return self.flow(self.prefix())


class Theirs:
    """LeRobot's sample_actions, and its two halves."""

    def __init__(self, model: Any, given: Mapping[str, Tensor], pi05: bool):
        self.model, self.noise = model, given["noise"]
        pixels = given["images"].permute(1, 0, 4, 2, 3).float() / 255 * 2 - 1
        self.seen = list(pixels), list(given["image_mask"].T), given["tokens"], given["token_mask"]
        self.state = {} if pi05 else {"state": given["state"]}

    def prefix(self) -> Any:
        return lerobot_pi0.embed_and_read(self.model, *self.seen)

    def flow(self, prefix: Any) -> Tensor:
        mask, cache = prefix

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            return self.model.denoise_step(
                **self.state, prefix_pad_masks=mask, past_key_values=cache, x_t=x_t, timestep=t
            )

        return euler_integrate(velocity, self.noise, self.model.config.num_inference_steps)

    def whole(self) -> Tensor:
        return self.model.sample_actions(*self.seen, **self.state, noise=self.noise)


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("pi0", "pi05"), default="pi0")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for both")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--present", type=int, default=2, help=f"cameras of {CAMERAS} that are there")
    parser.add_argument("--used", type=int, default=20, help=f"prompt tokens of {PROMPT} that are used")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = middle(options.family == "pi05")

    with torch.inference_mode():
        reference = lerobot_pi0.build(config.to_dict(), SEED)
        model = ours_with_the_weights_of(reference, config)
        given = frame(config, options.present, options.used)
        ours, theirs = Ours(model, given), Theirs(reference, given, config.pi05)
        apart = float((ours.whole() - theirs.whole()).abs().max())  # warms both up
        largest = float(theirs.whole().abs().max())
        prefixes = ours.prefix(), theirs.prefix()
        parts: dict[str, tuple[Callable[[], object], Callable[[], object], int]] = {
            "prefix": (ours.prefix, theirs.prefix, 1),
            "step": (partial(ours.flow, prefixes[0]), partial(theirs.flow, prefixes[1]), config.steps),
            "whole": (ours.whole, theirs.whole, 1),
        }
        taken: dict[tuple[str, int], list[float]] = {}
        for turn in range(options.rounds):
            for name, (mine, other, steps) in parts.items():
                for who in (0, 1) if turn % 2 else (1, 0):
                    taken.setdefault((name, who), []).append(timed(other if who else mine) / steps * 1e3)

    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.family}, {count / 1e6:.1f} M parameters, {options.threads} threads, torch {torch.__version__}")
    print("| | ours, ms | LeRobot, ms | ratio |\n|-|-:|-:|-:|")
    for name in parts:
        us, them = (statistics.median(taken[name, who]) for who in (0, 1))
        fastest = [min(taken[name, who]) for who in (0, 1)]
        ratio = us / them
        print(f"| {name} | {us:.0f} ({fastest[0]:.0f}) | {them:.0f} ({fastest[1]:.0f}) | {ratio:.2f} |")
    print(f"actions up to {largest:.2f} differ by {apart:.1e}: {'equal' if apart < EQUAL else 'NOT EQUAL'}")
    print(f"bar {BAR} of LeRobot's whole: {'met' if ratio <= BAR else 'missed'}")


if __name__ == "__main__":
    main()
