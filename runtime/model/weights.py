"""The names of published pi0 and pi0.5 weights, and ours: every key of a checkpoint is accounted for, by name alone.

openpi's PyTorch files and LeRobot's use one vocabulary; LeRobot's policies put `model.` before it. No file is read
here and no shape is known: who has shapes compares them with the model that the plan leads to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

PREFIX = "model."  # LeRobot's, in front of every key

_VLM = "paligemma_with_expert.paligemma."
_VISION = _VLM + "model.vision_tower.vision_model."
_LANGUAGE = _VLM + "model.language_model."
_EXPERT = "paligemma_with_expert.gemma_expert.model."

EMBEDDING = _LANGUAGE + "embed_tokens.weight"
TIED_HEAD = _VLM + "lm_head.weight"  # the same tensor as EMBEDDING: a file may hold either or both
EXPERT_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"  # never trained, never used

_LINEAR = ("weight", "bias")
_GEMMA_LAYER = (
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
)
_NORMS = ("input_layernorm", "post_attention_layernorm")
_SIGLIP_LAYER = (  # published, ours
    ("layer_norm1", "layer_norm1"),
    ("layer_norm2", "layer_norm2"),
    *((f"self_attn.{name}_proj", f"{name}_proj") for name in ("q", "k", "v", "out")),
    ("mlp.fc1", "fc1"),
    ("mlp.fc2", "fc2"),
)
_STACKS = {
    "vision": re.compile(re.escape(_VISION) + r"encoder\.layers\.(\d+)\."),
    "language": re.compile(re.escape(_LANGUAGE) + r"layers\.(\d+)\."),
    "expert": re.compile(re.escape(_EXPERT) + r"layers\.(\d+)\."),
}
_PI0_MARK = re.compile(r"(state_proj|action_time_mlp_(in|out))\.|" + re.escape(_EXPERT) + r".*norm\.weight$")
_PI05_MARK = re.compile(r"time_mlp_(in|out)\.|" + re.escape(_EXPERT) + r".*norm\.dense\.")


@dataclass(frozen=True, slots=True)
class Depths:
    """Layers of each stack."""

    vision: int
    language: int
    expert: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of each key of a checkpoint. Keys are as the file spells them."""

    pi05: bool
    depths: Depths
    names: Mapping[str, str]  # published key -> name of our parameter
    tied: tuple[str, ...]  # keys that stand for the token embedding under its other name
    dead: tuple[str, ...]  # known keys that nothing needs
    unknown: tuple[str, ...]
    missing: Mapping[str, str]  # what is not in the file: published key (without a prefix) -> name of our parameter

    @property
    def complete(self) -> bool:
        return not self.unknown and not self.missing


def published_to_ours(keys: Iterable[str]) -> Plan:
    """Account for every key of a pi0 or pi0.5 checkpoint. Raises nothing: what does not fit is in the plan."""
    spelled: dict[str, str] = {}  # without prefix -> as in the file
    unknown = []
    for key in keys:
        if spelled.setdefault(key.removeprefix(PREFIX), key) != key:
            unknown.append(key)  # the same name twice, with and without the prefix
    pi05, depths = _is_pi05(spelled), _depths(spelled)
    tied, dead = [], []
    if EXPERT_HEAD in spelled:
        dead.append(spelled.pop(EXPERT_HEAD))
    if TIED_HEAD in spelled:
        if EMBEDDING in spelled:
            dead.append(spelled.pop(TIED_HEAD))
        else:
            tied.append(spelled[TIED_HEAD])
            spelled[EMBEDDING] = spelled.pop(TIED_HEAD)
    names, missing = {}, {}
    for published, ours in parameters(pi05, depths):
        if published in spelled:
            names[spelled.pop(published)] = ours
        else:
            missing[published] = ours
    return Plan(pi05, depths, names, tuple(tied), tuple(dead), (*unknown, *spelled.values()), missing)


def parameters(pi05: bool, depths: Depths) -> Iterator[tuple[str, str]]:
    """Published key (without a prefix) and our parameter, for every parameter of such a model."""
    yield _VISION + "embeddings.position_embedding.weight", "vision.position_embedding"
    yield from _pairs(_VISION + "embeddings.patch_embedding", "vision.patch_embedding", _LINEAR)
    for i in range(depths.vision):
        for published, ours in _SIGLIP_LAYER:
            yield from _pairs(f"{_VISION}encoder.layers.{i}.{published}", f"vision.layers.{i}.{ours}", _LINEAR)
    yield from _pairs(_VISION + "post_layernorm", "vision.post_layernorm", _LINEAR)
    yield from _pairs(_VLM + "model.multi_modal_projector.linear", "projector", _LINEAR)
    yield EMBEDDING, "embedding.weight"
    yield from _gemma(_LANGUAGE, "language", depths.language, adaptive=False)
    yield from _gemma(_EXPERT, "expert", depths.expert, adaptive=pi05)
    heads = ("time_mlp_in", "time_mlp_out") if pi05 else ("state_proj", "action_time_mlp_in", "action_time_mlp_out")
    for head in ("action_in_proj", "action_out_proj", *heads):
        yield from _pairs(head, head, _LINEAR)


def part(name: str) -> str:
    """Our parameter -> the part it belongs to, as in the model's parameter groups: vision, projector, embedding,
    language.<layer>, language (its unused last norm), expert.<layer> or heads."""
    head, _, rest = name.partition(".")
    if head in ("language", "expert"):
        return f"{head}.{rest.partition('.')[0]}"
    if head == "language_norm":
        return "language"
    return head if head in ("vision", "projector", "embedding") else "heads"


def _gemma(published: str, ours: str, layers: int, adaptive: bool) -> Iterator[tuple[str, str]]:
    norm = ("dense.weight", "dense.bias") if adaptive else ("weight",)
    for i in range(layers):
        here, there = f"{published}layers.{i}", f"{ours}.{i}"
        for name in _NORMS:
            yield from _pairs(f"{here}.{name}", f"{there}.{name}", norm)
        yield from _pairs(here, there, _GEMMA_LAYER)
    yield from _pairs(f"{published}norm", f"{ours}_norm", norm)


def _pairs(published: str, ours: str, ends: Iterable[str]) -> Iterator[tuple[str, str]]:
    for end in ends:
        yield f"{published}.{end}", f"{ours}.{end}"


def _is_pi05(keys: Iterable[str]) -> bool:
    """By what only one of the two has. A mixture goes to the one with more of it; the rest is unknown and missing."""
    keys = list(keys)
    return sum(bool(_PI05_MARK.match(key)) for key in keys) > sum(bool(_PI0_MARK.match(key)) for key in keys)


def _depths(keys: Iterable[str]) -> Depths:
    found = dict.fromkeys(_STACKS, 0)
    for key in keys:
        for stack, pattern in _STACKS.items():
            if match := pattern.match(key):
                found[stack] = max(found[stack], int(match[1]) + 1)
    gemma = max(found["language"], found["expert"])  # both have the same number of layers
    return Depths(found["vision"], gemma, gemma)
