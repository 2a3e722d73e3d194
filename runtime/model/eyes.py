"""What sees in a pi0: SigLIP's tower, or the nano preset's convolutions. A picture in, one vector per patch out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hotpolicy.runtime.model.pi0_config import VisionConfig


class SiglipLayer(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.heads = config.heads
        self.layer_norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer_norm1(x)
        split = [p(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)]
        x = x + self.out_proj(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.layer_norm2(x)), approximate="tanh"))


class SiglipTower(nn.Module):
    """(batch, 3, size, size) in [-1, 1] -> (batch, tokens, width). `run` runs a layer: see `Vla.layer`."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.position_embedding = nn.Parameter(torch.randn(config.tokens, config.width) * 0.02)
        self.layers = nn.ModuleList(SiglipLayer(config) for _ in range(config.layers))
        self.post_layernorm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, image: Tensor, run: Callable[..., Tensor] = nn.Module.__call__) -> Tensor:
        x = self.patch_embedding(image).flatten(2).transpose(1, 2) + self.position_embedding
        x = x.to(self.post_layernorm.weight.dtype)
        for layer in self.layers:
            x = run(layer, x)
        return self.post_layernorm(x)


class ConvStem(nn.Module):
    """The nano preset's eyes: three convolutions, each halving (the first quartering in area) the picture."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        first, second = config.channels
        self.conv1 = nn.Conv2d(3, first, 4, 2, 1)
        self.conv2 = nn.Conv2d(first, second, 3, 2, 1)
        self.conv3 = nn.Conv2d(second, config.width, 3, 2, 1)
        waves = _grid_waves(config.tokens)
        start = F.pad(waves, (0, config.width - waves.shape[1])) * 0.5
        self.position_embedding = nn.Parameter(start + torch.randn(config.tokens, config.width) * 0.02)

    def forward(self, image: Tensor, run: Callable[..., Tensor] = nn.Module.__call__) -> Tensor:
        x = F.relu(self.conv1(image.contiguous(memory_format=torch.channels_last)))
        x = self.conv3(F.relu(self.conv2(x)))
        return x.flatten(2).transpose(1, 2) + self.position_embedding


def _grid_waves(tokens: int) -> Tensor:
    """(tokens, 16): sin and cos of the cell's place in the picture at four scales, a start for positions."""
    line = torch.linspace(-1, 1, math.isqrt(tokens))
    down, right = torch.meshgrid(line, line, indexing="ij")
    place = torch.stack([right, down], -1).view(tokens, 2)
    return torch.cat([wave(place * math.pi * k) for k in (0.5, 1, 2, 4) for wave in (torch.sin, torch.cos)], -1)
