"""What a frame costs a model that is not here: its shapes alone go through the network, as torch runs a program
without data. No weights, no time; the bytes are those that a real one keeps (tests/test_board_plan.py compares).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hotpolicy.finetune.activations import Activations, counting
from hotpolicy.finetune.cache import frame_bytes
from hotpolicy.finetune.gauge import FRAMES, Cost, set_free
from hotpolicy.finetune.learner import computing
from hotpolicy.finetune.lora import folded, is_adapter
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import Stage, Strategy, strategy
from hotpolicy.runtime.model import family
from hotpolicy.runtime.model.vla import Prefix, Vla


@dataclass(frozen=True, slots=True)
class Scene:
    """What the model is shown."""

    cameras: int
    pixels: int  # of a picture's side
    words: int  # of the longest instruction there may be


@dataclass(frozen=True, slots=True)
class Drawn:
    """A strategy on paper."""

    strategy: Strategy
    costs: tuple[Cost, ...]  # of its stages
    changed: int  # parameters of the tensors that a tuned version has anew; adapters are folded into theirs


class Blueprint:
    def __init__(self, model: Mapping[str, Any], scene: Scene):
        """`model` as a manifest has it. Raises BundleError for a family that is not known."""
        self.scene, self._shapes = scene, FakeTensorMode(allow_non_fake_inputs=True)
        with self._shapes:
            self.model = family(model["family"]).of(model["config"]).requires_grad_(False)
            self._prefix = self._read(self.model, no_gradients=True)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def draw(self, name: str, config: TuneConfig) -> Drawn:
        """Raises ConfigError for a strategy that this model does not have, or a rank."""
        found = strategy(name, self.model)
        costs, changed = [], set[str]()
        for stage in found.stages:
            with self._shapes:
                model = set_free(self.model, stage, config)
                costs.append(self._cost(model, stage, config))
            names = stage.learning(model)
            changed |= {folded(learns) if is_adapter(learns) else learns for learns in names}
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        return Drawn(found, tuple(costs), sum(sizes[name] for name in changed))

    def _cost(self, model: Vla, stage: Stage, config: TuneConfig) -> Cost:
        kept = self._kept(model, stage.frozen_prefix, config)
        return Cost.of(kept, FRAMES, model)

    def _kept(self, model: Vla, frozen: bool, config: TuneConfig) -> Activations:
        width, horizon = model.config.action_dim, model.config.horizon
        state, actions = torch.zeros(FRAMES, width), torch.zeros(FRAMES, horizon, width)
        noise, times = torch.zeros(FRAMES, config.draws, horizon, width), torch.zeros(FRAMES, config.draws)
        with computing(config), counting(model) as count:
            prefix = self._prefix if frozen else self._read(model)
            model.flow_loss(prefix, state, actions, noise, times)
        count.prefix = frame_bytes(self._prefix) if frozen else 0
        return count

    def _read(self, model: Vla, no_gradients: bool = False) -> Prefix:
        scene = self.scene
        images = torch.zeros(FRAMES, scene.cameras, scene.pixels, scene.pixels, 3, dtype=torch.uint8)
        words = torch.zeros(FRAMES, scene.words, dtype=torch.int64)
        with torch.set_grad_enabled(not no_gradients):
            return model.prefix(images, torch.ones(images.shape[:2], dtype=torch.bool), words, words == 0, packed=False)
