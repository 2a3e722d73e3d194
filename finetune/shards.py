"""A learner of which every process holds a part: FSDP2 over gloo, for runs in which everything learns.

Weights, gradients, the optimiser's memory and averages are cut into as many parts as there are processes; a layer is
whole only while it is computed. The parent is not cut: each process has it as it was loaded. To be evaluated or
published, the averages are put together once, by all. What is saved is whole, so that any number of processes goes on
from it. Every method here is to be called by all processes alike. It never ran on a GPU.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from hotpolicy.finetune.batches import Batch
from hotpolicy.finetune.cache import Prefixes
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.learner import Learner, State
from hotpolicy.finetune.ranks import Ranks
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import Stage, Strategy
from hotpolicy.runtime.engine.torch_weights import apply_delta
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.model.vla import Vla

UNIT = re.compile(r"language\.\d+|vision\.layers\.\d+")  # is whole by itself; the rest is whole for a whole pass


def learner_of(parent: Vla, strategy: Strategy, config: TuneConfig, ranks: Ranks) -> Learner:
    """Whole in each process, unless everything learns in several."""
    kind = ShardedLearner if ranks.size > 1 and strategy.name == "full" else Learner
    return kind(parent, strategy.stages, config, ranks)


class ShardedLearner(Learner):
    def __init__(self, parent: Vla, stages: Sequence[Stage], config: TuneConfig, ranks: Ranks):
        """Raises ConfigError for a batch of which some process would have no part: all must compute together."""
        size = ranks.size
        if config.batch < size * config.accumulate:
            raise ConfigError(
                f"batch: expected at least {size * config.accumulate}, a frame for each of {size} processes in each of "
                f"{config.accumulate} parts, got {config.batch}"
            )
        self._parent, self._mesh = parent, init_device_mesh("cpu", (size,))
        super().__init__(parent, stages, config, ranks)

    def _begin(self, stage: Stage) -> None:
        groups = self._set_free(stage, 0)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        members = [[names[id(parameter)] for parameter in group["params"]] for group in groups]
        self._pass = _Pass(self.model)
        for name, module in self.model.named_modules():
            if UNIT.fullmatch(name):
                fully_shard(module, mesh=self._mesh)
                if hasattr(module, "read"):
                    register_fsdp_forward_method(module, "read")
        fully_shard(self._pass, mesh=self._mesh)
        for module in self._pass.modules():
            if isinstance(module, FSDPModule):  # each process's loss is its share of the batch's: a sum, not a mean
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        cut = dict(self.model.named_parameters())
        for group, own in zip(groups, members, strict=True):
            group["params"] = [cut[name] for name in own]
        self._optimiser = torch.optim.AdamW(groups, weight_decay=self.config.decay, betas=(0.9, 0.95))
        self._averages = {name: parameter.detach().clone() for name, parameter in self.free().items()}
        self._updates = 0

    @property
    def saves(self) -> bool:
        return True

    def agreed(self, wish: bool) -> bool:
        return self.ranks.total(float(wish and self.ranks.first)) > 0

    def loss(self, frames: Frames, batch: Batch, prefixes: Prefixes) -> Tensor:
        """Nothing is frozen, so prefixes are computed within."""
        with warnings.catch_warnings():  # K/V are views; nothing changes them in place while gradients are kept
            warnings.filterwarnings("ignore", "FSDP2-wrapped module")
            result: Tensor = self._pass(frames, batch)
        return result

    def _share_gradients(self) -> None:
        """They were summed on the way back."""

    @property
    def averaged(self) -> Vla:
        """Put together anew each time it is asked for: whole, and this process's own."""
        return apply_delta(self._parent, {name: _whole(value) for name, value in self._averages.items()})

    def averages(self) -> State:
        """This process's part of each, as DTensors."""
        return self._averages

    @torch.no_grad()
    def _average(self) -> None:
        self._updates += 1
        keep = min(self.config.ema, (1 + self._updates) / (10 + self._updates))
        for name, parameter in self.free().items():
            _own(self._averages[name]).lerp_(_own(parameter), 1 - keep)

    def finish(self, averages: Mapping[str, Tensor] | None = None) -> tuple[Vla, tuple[str, ...]]:
        self._averages = dict(averages or self._averages)
        return self.averaged, tuple(self.free())

    def moments(self) -> State:
        return self.gather(super().moments())

    def carry(self, moments: Mapping[str, Tensor]) -> int:
        return super().carry(self.scatter(moments))

    def state(self) -> State:
        state: State = {"updates": torch.tensor(self._updates)}
        for name, parameter in self.free().items():
            state |= {f"weights/{name}": parameter.detach(), f"averages/{name}": self._averages[name]}
            state |= {f"{field}/{name}": value for field, value in self._optimiser.state[parameter].items()}
        return self.gather(state)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._restore(self.scatter(state), self._averages)
        self._updates = int(state["updates"])

    def gather(self, parts: Mapping[str, Tensor]) -> State:
        return {name: _whole(value) for name, value in parts.items()}

    def scatter(self, state: Mapping[str, Tensor]) -> State:
        """Each tensor cut as the parameter whose name its key ends in; the rest as it is."""
        free, found = self.free(), State()
        for key, value in state.items():
            parameter = free.get(key.partition("/")[2], free.get(key))
            fits = isinstance(parameter, DTensor) and value.shape == parameter.shape
            found[key] = _cut(value, parameter) if fits else value
        return found


class _Pass(nn.Module):
    """From frames to their loss as one call, which is where the outermost layers are put together."""

    def __init__(self, model: Vla):
        super().__init__()
        self.model = model

    def forward(self, frames: Frames, batch: Batch) -> Tensor:
        rows, model = batch.rows, self.model
        prefix = frames.prefix(model, rows)
        return model.flow_loss(prefix, frames.state[rows], frames.actions[rows], batch.noise, batch.times)


def _own(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _cut(value: Tensor, like: Tensor | None) -> Tensor:
    assert isinstance(like, DTensor)
    return distribute_tensor(value, like.device_mesh, like.placements)
