"""The weights that learn: what of a model is free, its optimiser, and its average, which is what gets published.

It knows no data, no stages' order and no files. A frozen parameter costs nothing here: it is the parent's own, without
gradient, optimiser state or copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hotpolicy.finetune import lora
from hotpolicy.finetune.batches import Batch
from hotpolicy.finetune.cache import Prefixes
from hotpolicy.finetune.ema import Ema
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.heap import give_back
from hotpolicy.finetune.ranks import ALONE, Ranks
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import Stage
from hotpolicy.runtime.engine.torch_weights import apply_delta
from hotpolicy.runtime.errors import TuningError
from hotpolicy.runtime.model.vla import Vla

State = dict[str, Tensor]


def computing(config: TuneConfig) -> torch.autocast:
    """What every pass there and back is done in: the precision of matrix products."""
    return torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16")


class Learner:
    def __init__(self, parent: Vla, stages: Sequence[Stage], config: TuneConfig, ranks: Ranks = ALONE):
        """Enters the first stage. Raises ConfigError for a rank that a layer does not have."""
        self.model = apply_delta(parent, {})
        self.config, self.ranks = config, ranks
        layers = dict.fromkeys(name for stage in stages for name in stage.layers(self.model))
        random = torch.Generator().manual_seed(config.seed)
        lora.attach(self.model, layers, config.lora_rank, config.lora_alpha, random)
        self._begin(stages[0])
        self.model.recompute = config.recompute

    def _begin(self, stage: Stage) -> None:
        groups = self._set_free(stage, 0)
        self._optimiser = torch.optim.AdamW(groups, weight_decay=self.config.decay, betas=(0.9, 0.95))
        self._ema = Ema(self.model, self.config.ema)

    def _average(self) -> None:
        self._ema.update(self.model)

    @property
    def averaged(self) -> Vla:
        """The model of averaged weights; it shares what is frozen."""
        return self._ema.model

    def free(self) -> dict[str, Tensor]:
        """Name -> parameter, of all that learns."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def averages(self) -> State:
        """The averaged weights of all that learns, by name."""
        averages = self.averaged.state_dict()
        return {name: averages[name] for name in self.free()}

    def enter(self, stage: Stage, step: int) -> None:
        """Set free what this stage trains too. What was free before stays so."""
        for group in self._set_free(stage, step):
            self._optimiser.add_param_group(group)
        self._ema.follow(self.model)

    def _set_free(self, stage: Stage, step: int) -> list[dict[str, Any]]:
        """What is set free gets its own copy, in fp32 -> groups for the optimiser, one for each rate."""
        learning = stage.learning(self.model)
        fresh: dict[float, list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            if name in learning and not parameter.requires_grad:
                parameter.data = parameter.data.float().clone()
                parameter.requires_grad_(True)
                fresh.setdefault(learning[name], []).append(parameter)
        return [
            {"params": members, "multiple": multiple, "since": step, "lr": 0.0} for multiple, members in fresh.items()
        ]

    @property
    def saves(self) -> bool:
        """Whether this process has to take part in a snapshot."""
        return self.ranks.first

    def agreed(self, wish: bool) -> bool:
        """Whether to do what this process wishes; where all have to do it together, what the first one wishes."""
        return wish

    def loss(self, frames: Frames, batch: Batch, prefixes: Prefixes) -> Tensor:
        """Flow loss of these frames, (batch, draws)."""
        rows = batch.rows
        prefix = prefixes.take(rows)
        return self.model.flow_loss(prefix, frames.state[rows], frames.actions[rows], batch.noise, batch.times)

    def update(self, step: int, rate: float) -> float:
        """One step of the optimiser with the gradients of all processes -> their norm, before it was clipped. Raises
        TuningError when they are not finite."""
        self._share_gradients()
        for group in self._optimiser.param_groups:
            warm = min(1.0, (step - group["since"] + 1) / max(1, self.config.warmup))
            group["lr"] = rate * group["multiple"] * warm
        clipped = torch.nn.utils.clip_grad_norm_(list(self.free().values()), self.config.clip)
        norm = (clipped.full_tensor() if isinstance(clipped, DTensor) else clipped).item()  # of all processes' parts
        if not math.isfinite(norm):
            raise TuningError(f"step {step + 1}: expected a finite gradient, got {norm:g}")
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._average()
        return norm

    def _share_gradients(self) -> None:
        self.ranks.sum_gradients(self.free().values())

    def finish(self, averages: Mapping[str, Tensor] | None = None) -> tuple[Vla, tuple[str, ...]]:
        """The model to publish, of these averages or the present ones, and the names of the tensors that learned.
        Adapters are folded into the layers they belong to. The learner has no further use."""
        if averages:
            self.averaged.load_state_dict(dict(averages), strict=False)
        names = (lora.folded(name) if lora.is_adapter(name) else name for name in self.free())
        learned = tuple(dict.fromkeys(names))
        if lora.folded_bytes(self.averaged):
            give_back()  # folding needs room for every weight that has an adapter
            lora.fold(self.averaged)
        return self.averaged, learned

    # A run that begins where another ended.

    def moments(self) -> State:
        """What the optimiser remembers of each tensor that learns, by flat names; adapters do not last."""
        return {
            f"{field}/{name}": value
            for name, parameter in self.free().items()
            if not lora.is_adapter(name)
            for field, value in self._optimiser.state[parameter].items()
        }

    def carry(self, moments: Mapping[str, Tensor]) -> int:
        """Take up what another run remembered of the same tensors; how many there were. Before the first step."""
        parts = dict[str, State]()
        for key, value in moments.items():
            field, _, name = key.partition("/")
            parts.setdefault(name, {})[field] = value
        free, carried = self.free(), 0
        for name, fields in parts.items():
            if name not in free or any(value.ndim and value.shape != free[name].shape for value in fields.values()):
                continue
            self._optimiser.state[free[name]] = {field: value.clone() for field, value in fields.items()}
            carried += 1
        return carried

    # A run that goes on where it was.

    def state(self) -> State:
        """Weights, averages and the optimiser's memory of all that is free, by flat names."""
        state: State = {"updates": torch.tensor(self._ema.updates)}
        for name, parameter in self.free().items():
            state[f"weights/{name}"] = parameter.detach()
            state |= {f"{field}/{name}": value for field, value in self._optimiser.state[parameter].items()}
        return state | {f"averages/{name}": value for name, value in self.averages().items()}

    def gather(self, parts: Mapping[str, Tensor]) -> State:
        """Whole, as it is saved: here everything is."""
        return dict(parts)

    def scatter(self, state: Mapping[str, Tensor]) -> State:
        """What was saved, as this process holds it."""
        return dict(state)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """After the same stages were entered. Raises TuningError for a state of other parameters."""
        self._restore(state, self.averaged.state_dict())
        self._ema.updates = int(state["updates"])

    @torch.no_grad()
    def _restore(self, state: Mapping[str, Tensor], averages: State) -> None:
        parts = dict[str, State]()
        for key, value in state.items():
            field, _, name = key.partition("/")
            parts.setdefault(name, {})[field] = value
        parts.pop("", None)  # what belongs to no parameter
        if strange := sorted(set(parts) ^ set(self.free())):
            raise TuningError(f"training checkpoint: {strange[0]} is not a part of both it and this run")
        for name, parameter in self.free().items():
            fields = parts[name]
            try:
                parameter.copy_(fields.pop("weights"))
                averages[name].copy_(fields.pop("averages"))
            except (KeyError, RuntimeError) as error:
                raise TuningError(f"training checkpoint: {name} is missing or has another shape") from error
            self._optimiser.state[parameter] = {field: value.clone() for field, value in fields.items()}
