"""Where a torch model computes, in which precision and with how many threads: asked for by name, or chosen by rule."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from hotpolicy.runtime.engine.processor import is_small, threads_for
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.model.vla import Vla

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TorchOptions:
    device: str = "auto"  # cuda where there is one
    dtype: str = "auto"  # see Place.choose
    threads: int | None = None  # of one inference on the CPU; None: one for a small model, else one per core
    traced: bool = True  # a small model's chunk on the CPU is one call where torch can do that: see torch_traced.py

    def __post_init__(self) -> None:
        for name, value, known in (("device", self.device, DEVICES), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise ConfigError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if self.threads is not None and not 1 <= self.threads <= 256:
            raise ConfigError(f"threads: expected a number from 1 to 256, got {self.threads}")


@dataclass(frozen=True, slots=True)
class Place:
    """What the options come to on this machine, for one model and all deltas on it."""

    device: torch.device
    dtype: torch.dtype  # of weights and activations; `Vla.precise` names the weights that are fp32 all the same
    threads: int
    traced: bool = False

    @classmethod
    def choose(cls, options: TorchOptions, model: Vla) -> Place:
        """`auto` precision is bf16 on CUDA; on the CPU for weights that are stored so, where the processor multiplies
        bf16 (AVX512-BF16, AMX): there it took 0.6 of fp32's time, elsewhere 5.6 times as long. Otherwise it is fp32.
        Raises ConfigError for a device that is not there."""
        there = torch.cuda.is_available()
        if options.device == "cuda" and not there:
            raise ConfigError("device: expected a CUDA device, torch finds none")
        device = torch.device("cuda" if there and options.device != "cpu" else "cpu")
        dtype = DTYPES[options.dtype]
        if dtype is None:
            fitting = device.type == "cuda" or (_stored_bf16(model) and native_bf16())
            dtype = torch.bfloat16 if fitting else torch.float32
        parameters = sum(p.numel() for p in model.parameters())
        traced = options.traced and device.type == "cpu" and is_small(parameters)
        return cls(device, dtype, options.threads or threads_for(parameters), traced)

    def settle(self, model: Vla) -> Vla:
        """The model here: itself, where all of its weights are here already, or a twin that shares those that are."""
        precise = model.precise()
        moved = {
            id(parameter): _placed(parameter, self.device, torch.float32 if name in precise else self.dtype)
            for name, parameter in model.named_parameters()
        }
        if all(parameter is moved[id(parameter)] for parameter in model.parameters()):
            return model
        return copy.deepcopy(model, dict(moved))  # deepcopy takes these for parameters it has copied before


def _placed(parameter: nn.Parameter, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    data = parameter.data.to(device, dtype)
    return parameter if data is parameter.data or data.data_ptr() == parameter.data_ptr() else nn.Parameter(data, False)


def native_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself. Older torch cannot tell: then no."""
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _stored_bf16(model: Vla) -> bool:
    stored = sum(p.numel() for p in model.parameters() if p.dtype == torch.bfloat16)
    return 2 * stored > sum(p.numel() for p in model.parameters())
