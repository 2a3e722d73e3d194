"""config.json against the weights beside it: where they differ, one of them is not what it seems."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hotpolicy.runtime.checkpoint.layout import Source
from hotpolicy.runtime.checkpoint.sizes import VARIANTS
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.model.pi0 import GemmaConfig, Pi0Config

FAMILY = {False: "pi0", True: "pi05"}


def check_config(source: Source, config: Pi0Config) -> None:
    """Raises BundleError naming the field of config.json, what it says and what the weights are."""
    for key, says, is_ in _claims(source.config, config):
        if says != is_:
            raise BundleError(f"{source.folder / 'config.json'}: {key}: {says!r}, but the weights are {is_!r}")


def _claims(data: Any, config: Pi0Config) -> Iterator[tuple[str, object, object]]:
    """Field, what it says, and what it would say of these weights."""
    if "type" in data:
        yield "type", data["type"], FAMILY[config.pi05]
    if "pi05" in data:
        yield "pi05", data["pi05"], config.pi05
    for key in ("action_dim", "max_action_dim", "max_state_dim"):
        if key in data:
            yield key, data[key], config.action_dim
    for key, gemma in (("paligemma_variant", config.language), ("action_expert_variant", config.expert)):
        if (name := str(data.get(key, "")).removesuffix("_lora")) in VARIANTS:
            yield key, data[key], data[key] if VARIANTS[name] == gemma else _sizes(gemma)
    if "image_resolution" in data:
        yield "image_resolution", list(data["image_resolution"]), [config.vision.image_size] * 2


def _sizes(gemma: GemmaConfig) -> str:
    return f"width {gemma.width}, {gemma.layers} layers, mlp {gemma.mlp}, {gemma.heads} heads of {gemma.head_dim}"
