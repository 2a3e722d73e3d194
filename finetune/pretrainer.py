"""Pretraining of a nano policy from nothing: first to look, then to look and act.

Stage one trains only the auxiliary losses of `localise`; stage two the flow loss with a tenth of them. AdamW,
cosine over the whole budget, averaged weights. The budget is in steps, so that a busy machine trains as much as
an idle one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hotpolicy.finetune.ema import Ema
from hotpolicy.finetune.localise import Babbler, Localiser
from hotpolicy.runtime.model.pi0 import Pi0, Pi0Config
from hotpolicy.runtime.model.vla import sample_times
from hotpolicy.runtime.tokenizer import WordTokenizer
from hotpolicy.runtime.transforms import Transforms


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    looking_steps: int = 400  # auxiliary losses only
    steps: int = 2200  # in all
    batch: int = 64  # frames
    draws: int = 4  # noise and time draws per frame
    rate: float = 2e-3
    warmup: int = 100  # steps
    ema: float = 0.999
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PretrainData:
    """Frames of many episodes; all arrays share the first axis."""

    images: np.ndarray  # (frames, height, width, 3) uint8
    state: np.ndarray  # (frames, joints) float32
    actions: np.ndarray  # (frames, horizon, joints) float32, absolute
    tokens: np.ndarray  # (frames, max_tokens) int64
    places: np.ndarray  # (frames, colours, 2) float32, 0..1 in the image
    present: np.ndarray  # (frames, colours) bool
    target: np.ndarray  # (frames,) int64, the named colour


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    flow: float  # running mean of the flow loss; nan in stage one
    error: float  # running mean of the named object's position error, image cells


def pretrain(
    config: PretrainConfig,
    model_config: Pi0Config,
    transforms: Transforms,
    colours: tuple[str, ...],
    data: PretrainData,
    watch: Callable[[Progress, Pi0], None],
) -> Pi0:
    """-> the averaged model. Seeded: the same seed, data and thread count give the same weights."""
    torch.manual_seed(config.seed)
    model = Pi0(model_config)
    torch.nn.init.zeros_(model.action_out_proj.weight)
    torch.nn.init.zeros_(model.action_out_proj.bias)
    localiser = Localiser(model_config.language.width, model_config.vision.tokens, len(colours))
    assert isinstance(transforms.tokenizer, WordTokenizer), "babble is made of hashed words"
    run = _Run(config, model, localiser, transforms, Babbler(transforms.tokenizer, colours), data)
    ema = Ema(model, config.ema)
    flow, error = math.nan, math.nan
    for step in range(config.steps):
        new_flow, new_error = run.step(step)
        ema.update(model)
        flow, error = _running(flow, new_flow), _running(error, new_error)
        watch(Progress(step + 1, flow, error), ema.model)
    return ema.model


class _Run:
    def __init__(
        self,
        config: PretrainConfig,
        model: Pi0,
        localiser: Localiser,
        transforms: Transforms,
        babbler: Babbler,
        data: PretrainData,
    ):
        self.config, self.model, self.localiser, self.babbler, self.data = config, model, localiser, babbler, data
        self.state = torch.from_numpy(transforms.encode_state(data.state))
        self.actions = torch.from_numpy(transforms.encode_actions(data.actions, data.state))
        parameters = [p for name, p in model.named_parameters() if not name.startswith("embedding")]
        parameters += list(localiser.parameters())
        # Embeddings are multiplied by sqrt(width) on their way in: without this their rate would be as much higher.
        gentle = config.rate / math.sqrt(model.config.language.width)
        self.optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.02, "peak": config.rate},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, "peak": config.rate},
                {"params": list(model.embedding.parameters()), "weight_decay": 0.0, "peak": gentle},
            ],
            betas=(0.9, 0.95),
        )
        self.parameters = [*model.parameters(), *localiser.parameters()]

    def step(self, step: int) -> tuple[float, float]:
        config = self.config
        ramp = min(1.0, (step + 1) / config.warmup) * (0.49 * (1 + math.cos(math.pi * step / config.steps)) + 0.02)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * ramp
        acting = step >= config.looking_steps
        flow, auxiliary, error = self._losses(acting)
        (flow + auxiliary * (0.1 if acting else 1.0)).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return flow.item() if acting else math.nan, error.item()

    def _losses(self, acting: bool) -> tuple[Tensor, Tensor, Tensor]:
        config, data, model = self.config, self.data, self.model
        rows = torch.randint(0, len(data.images), (config.batch,)).numpy()
        # The first rows get a babbled instruction and serve the auxiliary loss only.
        babbled = config.batch // 5 if acting else config.batch
        tokens = torch.from_numpy(data.tokens[rows])
        target = torch.from_numpy(data.target[rows])
        mask = tokens > 0
        tokens[:babbled], mask[:babbled] = self.babbler.speak(target[:babbled])
        features = model.see(torch.from_numpy(data.images[rows])[:, None])
        hidden, mask = model.embed(features, torch.ones(config.batch, 1, dtype=torch.bool), tokens, mask)
        prefix, last = model.read(hidden, mask)
        auxiliary, error = self.localiser(
            features[:, 0],
            last[:, : features.shape[2]],
            torch.from_numpy(data.places[rows]),
            torch.from_numpy(data.present[rows]),
            target,
        )
        if not acting:
            return torch.zeros(()), auxiliary, error
        said = type(prefix)(
            tuple(k[babbled:] for k in prefix.keys), tuple(v[babbled:] for v in prefix.values), prefix.mask[babbled:]
        )
        state, actions = self.state[rows][babbled:], self.actions[rows][babbled:]
        noise = torch.randn(len(state), config.draws, *actions.shape[1:])
        times = sample_times((len(state), config.draws))
        return model.flow_loss(said, state, actions, noise, times).mean(), auxiliary, error


def _running(old: float, new: float) -> float:
    return new if math.isnan(old) else 0.98 * old + 0.02 * new
