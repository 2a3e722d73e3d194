"""The layers of gemma.py as ONNX operations. Activations are (batch * rows, width) throughout, so that every
projection is one Gemm over a weight as it lies in the bundle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hotpolicy.runtime.graphs.graph import Graph
from hotpolicy.runtime.model.pi0 import GemmaConfig

FAR = -1e9  # added to what must not be seen; finite, so that a row with nothing to see is not NaN
Norm = Callable[[str, str], "tuple[str, str | None]"]  # parameter's place, x -> y and a gate for the residual
Turn = tuple[str, str]  # cos and sin, (batch, 1, rows, head_dim / 2)


@dataclass(frozen=True)
class Layers:
    """A stack of Gemma layers."""

    g: Graph
    config: GemmaConfig
    name: str
    norm: Norm
    rows: str  # [batch, rows] int64; -1 for the batch is enough where rows is a number
    turn: Turn

    def enter(self, layer: int, x: str) -> tuple[str, str | None]:
        return self.norm(f"{self.name}.{layer}.input_layernorm", x)

    def key_value(self, layer: int, y: str) -> tuple[str, str]:
        """(batch, kv_heads, rows, head_dim) each."""
        key, value = (self._project(layer, y, which, self.config.kv_heads) for which in ("k_proj", "v_proj"))
        return _rotate(self.g, key, self.turn), value

    def attend(self, layer: int, y: str, key: str, value: str, bias: str) -> str:
        """bias (batch, 1, 1, keys). The query heads of one key head are rows of one product: nothing is repeated."""
        g, config = self.g, self.config
        query = _rotate(g, self._project(layer, y, "q_proj", config.heads), self.turn)
        query = g.op("Mul", query, g.constant(1 / math.sqrt(config.head_dim)))
        grouped = g.reshape(query, 0, config.kv_heads, -1, config.head_dim)
        mixed = _mix(g, grouped, key, value, bias)
        return self._gather(layer, g.reshape(mixed, 0, config.heads, -1, config.head_dim))

    def finish(self, layer: int, x: str, attended: str, gate: str | None = None) -> str:
        """The residual around attention, then the feed-forward half."""
        x = _residual(self.g, x, attended, gate)
        y, gate = self.norm(f"{self.name}.{layer}.post_attention_layernorm", x)
        return _residual(self.g, x, self._feed(f"{self.name}.{layer}.mlp", y), gate)

    def _feed(self, place: str, y: str) -> str:
        g = self.g
        gate = g.op("Gelu", linear(g, y, f"{place}.gate_proj", bias=False), approximate="tanh")
        up = linear(g, y, f"{place}.up_proj", bias=False)
        return linear(g, g.op("Mul", gate, up), f"{place}.down_proj", bias=False)

    def _project(self, layer: int, y: str, which: str, heads: int) -> str:
        flat = linear(self.g, y, f"{self.name}.{layer}.self_attn.{which}", bias=False)
        return split_heads(self.g, flat, self.rows, heads, self.config.head_dim)

    def _gather(self, layer: int, mixed: str) -> str:
        g, config = self.g, self.config
        flat = g.reshape(g.op("Transpose", mixed, perm=[0, 2, 1, 3]), -1, config.heads * config.head_dim)
        return linear(g, flat, f"{self.name}.{layer}.self_attn.o_proj", bias=False)


def gemma_norm(g: Graph) -> Norm:
    """x / rms(x) * (1 + weight)."""

    def norm(name: str, x: str) -> tuple[str, None]:
        outside = g.root or g  # the sum is of weights only: before the loop
        scale = outside.op("Add", g.weight(f"{name}.weight"), g.constant(1))
        return g.op("Mul", _unit_rms(g, x), scale), None

    return norm


def adaptive_norm(g: Graph, body: Graph, known: str, index: str) -> Norm:
    """pi0.5's: scale, shift and gate from what is known of time; `known` (steps, width) and all that is made of it
    lies in `g`, around the loop; `index` says which step it is."""

    def norm(name: str, x: str) -> tuple[str, str]:
        rows = linear(g, known, f"{name}.dense")
        scale, shift, gate = body.ops("Split", 3, body.op("Gather", rows, index, axis=0), axis=0, num_outputs=3)
        scaled = body.op("Mul", _unit_rms(body, x), body.op("Add", scale, g.constant(1)))
        return body.op("Add", scaled, shift), gate

    return norm


def linear(g: Graph, x: str, name: str, bias: bool = True) -> str:
    """x (rows, in) through torch's Linear of that name: weight (out, in)."""
    return g.product(x, f"{name}.weight", f"{name}.bias" if bias else None)


def silu(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.op("Sigmoid", x))


def split_heads(g: Graph, x: str, rows: str, heads: int, head_dim: int) -> str:
    """(batch * rows, heads * head_dim) -> (batch, heads, rows, head_dim); `rows` is [batch, rows]."""
    shape = g.op("Concat", rows, g.constant([heads, head_dim], "int64"), axis=0)
    return g.op("Transpose", g.op("Reshape", x, shape), perm=[0, 2, 1, 3])


def rotation(g: Graph, positions: str, head_dim: int) -> Turn:
    """Rotary position (theta 10000) of positions (batch, rows) float32."""
    period = np.float32(10000.0) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    place = g.op("Unsqueeze", positions, g.constant([1, 3], "int64"))
    angle = g.op("Div", place, g.constant(period))
    return g.op("Cos", angle), g.op("Sin", angle)


def mask_bias(g: Graph, mask: str) -> str:
    """(batch, keys) bool -> (batch, 1, 1, keys): 0 where it may be seen."""
    bias = g.op("Where", mask, g.constant(0), g.constant(FAR))
    return g.op("Unsqueeze", bias, g.constant([1, 2], "int64"))


def _mix(g: Graph, query: str, key: str, value: str, bias: str) -> str:
    scores = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 1, 3, 2]))
    return g.op("MatMul", g.op("Softmax", g.op("Add", scores, bias), axis=-1), value)


def _unit_rms(g: Graph, x: str) -> str:
    mean = g.op("ReduceMean", g.op("Pow", x, g.constant(2)), g.constant([-1], "int64"))
    return g.op("Div", x, g.op("Sqrt", g.op("Add", mean, g.constant(1e-6))))


def _rotate(g: Graph, x: str, turn: Turn) -> str:
    """Half-split, as in Gemma: the first half of a head turns against the second."""
    cos, sin = turn
    first, second = g.ops("Split", 2, x, axis=-1, num_outputs=2)
    left = g.op("Sub", g.op("Mul", first, cos), g.op("Mul", second, sin))
    right = g.op("Add", g.op("Mul", second, cos), g.op("Mul", first, sin))
    return g.op("Concat", left, right, axis=-1)


def _residual(g: Graph, x: str, branch: str, gate: str | None) -> str:
    return g.op("Add", x, branch if gate is None else g.op("Mul", branch, gate))
