"""What each exact saving of the model is worth: a chunk of actions with all of them, and with one left out.

    python bench/savings.py [--pi05] [--rounds 5] [--threads 2] [--out savings.json]

A model of about 270 M random parameters in fp32: 3 camera slots of 224x224 of which one has no camera, 20 of 48 places
for text in use (pi0.5: 60 of 200), 50 actions in 10 steps. The variants take turns in one process, so that a busy
machine disturbs all alike; what is reported is the fastest and the median of each, and the fastest's ratio to all
savings. All give the same actions; how far they differ is in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotpolicy.runtime.model.pi0 import GemmaConfig, Pi0, Pi0Config, Prefix, VisionConfig

SEEN = torch.tensor([[True, True, False]])


def mid_size(pi05: bool) -> Pi0Config:
    return Pi0Config(
        VisionConfig("siglip", image_size=224, width=512, layers=12, heads=8, mlp=2048),
        GemmaConfig(width=1024, layers=12, mlp=4096, heads=8, kv_heads=1, head_dim=128),
        GemmaConfig(width=384, layers=12, mlp=1536, heads=8, kv_heads=1, head_dim=128),
        vocabulary=20_000,
        action_dim=32,
        horizon=50,
        pi05=pi05,
    )


class Subject:
    """One model and one frame, and the ways to its actions."""

    def __init__(self, pi05: bool):
        torch.manual_seed(0)
        config = mid_size(pi05)
        self.model = Pi0(config).eval().requires_grad_(False)
        for name, parameter in self.model.named_parameters():
            if "dense" in name:  # pi0.5's norms begin at zero, where they would do nothing
                parameter.normal_(std=0.02)
        self.schedule = self.model.schedule()
        places, used = (200, 60) if pi05 else (48, 20)
        self.images = torch.randint(0, 256, (1, 3, 224, 224, 3), dtype=torch.uint8)
        self.tokens = torch.randint(1, config.vocabulary, (1, places))
        self.token_mask = torch.arange(places)[None] < used
        self.state, self.noise = torch.randn(1, 32), torch.randn(1, 50, 32)
        self.used = used

    def variants(self) -> dict[str, Callable[[], Tensor]]:
        frame = (self.images, SEEN, self.tokens, self.token_mask)
        two = (self.images[:, :2], SEEN[:, :2], self.tokens, self.token_mask)
        short = (self.images, SEEN, self.tokens[:, : self.used], self.token_mask[:, : self.used])
        bare = (*two[:2], *short[2:])
        read = self.model.prefix
        return {
            "all savings": lambda: self.flow(read(*frame)),
            "the absent camera is computed, and masked": lambda: self.flow(read(*short, packed=False)),
            "padding of the text is computed, and masked": lambda: self.flow(read(*two, packed=False)),
            "the last language layer is computed to its end": lambda: self.flow(self.to_the_end(*bare)),
            "time is computed for every chunk": lambda: self.flow(read(*frame), known=False),
            "the state token and the memory are made in every step": lambda: self.remembering(read(*frame)),
            "none of them": lambda: self.remembering(self.to_the_end(*frame), known=False),
        }

    def flow(self, prefix: Prefix, known: bool = True) -> Tensor:
        return self.model.flow(prefix, self.state, self.noise, self.schedule if known else None)

    def remembering(self, prefix: Prefix, known: bool = True) -> Tensor:
        x, moments = self.noise[:, None], (self.schedule if known else self.model.schedule()).moments
        for moment in moments:
            x = x - self.model.advance(self.model.remember(prefix, self.state), x, moment) / len(moments)
        return x[:, 0]

    def to_the_end(self, images: Tensor, seen: Tensor, tokens: Tensor, token_mask: Tensor) -> Prefix:
        """The prefix, and with it what nobody reads: the last layer's attention and feed-forward half."""
        model = self.model
        prefix, x = model.read(*model.embed(model.see(images), seen, tokens, token_mask))
        layer: Any = model.language[-1]
        attention = layer.self_attn
        y, _ = layer.input_layernorm(x)
        unturned = torch.ones(1, 1, y.shape[1], 64), torch.zeros(1, 1, y.shape[1], 64)
        query = attention.query(y, unturned)
        layer.finish(x, attention.attend(query, prefix.keys[-1], prefix.values[-1], prefix.mask[:, None, None]))
        return prefix


@torch.inference_mode()
def measure(subject: Subject, rounds: int) -> list[dict[str, Any]]:
    variants = subject.variants()
    answers = {name: compute() for name, compute in variants.items()}  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, compute in variants.items():
            before = time.perf_counter()
            compute()
            seconds[name].append(time.perf_counter() - before)
    first = next(iter(variants))
    return [
        {
            "variant": name,
            "fastest_ms": 1e3 * min(taken),
            "median_ms": 1e3 * statistics.median(taken),
            "ratio": min(taken) / min(seconds[first]),
            "differs_by": float((answers[name] - answers[first]).abs().max()),
        }
        for name, taken in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pi05", action="store_true", help="pi0.5 instead of pi0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.no_grad():
        subject = Subject(arguments.pi05)
    rows = measure(subject, arguments.rounds)
    million = sum(p.numel() for p in subject.model.parameters()) / 1e6
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    print(f"{'pi0.5' if arguments.pi05 else 'pi0'}, {million:.0f} M parameters, {arguments.threads} threads")
    print("| | fastest (median), ms | ratio | actions differ by |\n|---|--:|--:|--:|")
    for row in rows:
        timed = f"{row['fastest_ms']:.0f} ({row['median_ms']:.0f})"
        print(f"| {row['variant']} | {timed} | {row['ratio']:.3f} | {row['differs_by']:.0e} |")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
