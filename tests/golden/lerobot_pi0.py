"""LeRobot's own PI0Pytorch and PI05Pytorch at any size. It runs in LeRobot's environment only: see README.md.

LeRobot builds two sizes, both too large for a test. Here its table of sizes and the two transformers classes it
constructs are wrapped, so that the same code builds a model of the size asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from pi0_weights import weight
from torch import Tensor, nn


def build(config: Mapping[str, Any], seed: int, dtype: str = "float32") -> nn.Module:
    """`config` as Pi0Config.to_dict() gives it; weights by name from `seed`; dtype float32 or bfloat16 (mixed, as
    LeRobot mixes it)."""
    module, made, settings = (
        (modeling_pi05, "PI05Pytorch", PI05Config) if config["pi05"] else (modeling_pi0, "PI0Pytorch", PI0Config)
    )
    size = config["vision"]["image_size"]
    chosen = settings(
        dtype=dtype,
        chunk_size=config["horizon"],
        n_action_steps=config["horizon"],
        max_state_dim=config["action_dim"],
        max_action_dim=config["action_dim"],
        num_inference_steps=config["steps"],
        image_resolution=(size, size),
        device="cpu",
    )
    with mock.patch.multiple(module, **of_size(module, config)):
        model = getattr(module, made)(chosen)
    fill(model, seed)
    return model.eval().requires_grad_(False)


def fill(model: nn.Module, seed: int) -> None:
    for name, parameter in model.state_dict(keep_vars=True).items():
        if not name.endswith("lm_head.weight"):  # never used; PaliGemma's is the token embedding under another name
            parameter.data.copy_(torch.from_numpy(weight(name, tuple(parameter.shape), seed)))


def embed_and_read(model: Any, images: list[Tensor], seen: list[Tensor], tokens: Tensor, token_mask: Tensor) -> Any:
    """-> prefix mask and LeRobot's cache, by the first half of its sample_actions."""
    hidden, mask, blocks = model.embed_prefix(images, seen, tokens, token_mask)
    visible = modeling_pi0.prepare_attention_masks_4d(modeling_pi0.make_att_2d_masks(mask, blocks))
    language = model.paligemma_with_expert.paligemma.model.language_model
    language.config._attn_implementation = "eager"
    _, cache = model.paligemma_with_expert.forward(
        attention_mask=visible,
        position_ids=torch.cumsum(mask, dim=1) - 1,
        past_key_values=None,
        inputs_embeds=[hidden, None],
        use_cache=True,
    )
    return mask, cache


@contextmanager
def spied_times() -> Iterator[list[Tensor]]:
    """Every embedded time (batch, width) that LeRobot computes meanwhile."""
    made: list[Tensor] = []

    def spy(*given: Any, **named: Any) -> Tensor:
        made.append(create_sinusoidal_pos_embedding(*given, **named))
        return made[-1]

    with (
        mock.patch.object(modeling_pi0, "create_sinusoidal_pos_embedding", spy),
        mock.patch.object(modeling_pi05, "create_sinusoidal_pos_embedding", spy),
    ):
        yield made


def of_size(module: ModuleType, config: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    vision, vocabulary = config["vision"], config["vocabulary"]
    whole, expert = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM

    def gemma(variant: str) -> Any:
        part = config["language" if variant == "gemma_2b" else "expert"]
        return module.GemmaConfig(
            width=part["width"],
            depth=part["layers"],
            mlp_dim=part["mlp"],
            num_heads=part["heads"],
            num_kv_heads=part["kv_heads"],
            head_dim=part["head_dim"],
        )

    def make_whole(config: Any) -> nn.Module:
        config.vision_config.hidden_size = vision["width"]
        config.vision_config.num_hidden_layers = vision["layers"]
        config.vision_config.num_attention_heads = vision["heads"]
        config.vision_config.intermediate_size = vision["mlp"]
        config.vision_config.patch_size = vision["patch"]
        config.vision_config.projection_dim = config.text_config.hidden_size
        config.text_config.vocab_size = config.image_token_index = vocabulary
        return whole(config=config)

    def make_expert(config: Any) -> nn.Module:
        config.vocab_size = vocabulary
        return expert(config=config)

    return {
        "get_gemma_config": gemma,
        "PaliGemmaForConditionalGenerationWithPiGemma": make_whole,
        "PiGemmaForCausalLM": make_expert,
    }
