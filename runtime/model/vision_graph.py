"""vision.py as ONNX operations."""

from __future__ import annotations

import math

from hotpolicy.runtime.graphs.graph import Graph
from hotpolicy.runtime.model.gemma_graph import linear, split_heads
from hotpolicy.runtime.model.pi0 import Pi0Config, VisionConfig


def see(g: Graph, config: Pi0Config, images: str) -> str:
    """(batch, cameras, height, width, 3) uint8 -> (batch, cameras * tokens, language width)."""
    vision, size = config.vision, config.vision.image_size
    flat = g.op("Transpose", g.reshape(images, -1, size, size, 3), perm=[0, 3, 1, 2])
    flat = g.op("Sub", g.op("Div", g.cast(flat, "float32"), g.constant(127.5)), g.constant(1))
    features = _stem(g, flat) if vision.kind == "stem" else _siglip(g, vision, flat)
    if vision.kind == "siglip":
        features = linear(g, g.reshape(features, -1, vision.width), "projector")
    batch = g.op("Shape", images, start=0, end=1)
    shape = g.op("Concat", batch, g.constant([-1, config.language.width], "int64"), axis=0)
    return g.op("Reshape", features, shape)


def _stem(g: Graph, x: str) -> str:
    for name, kernel in (("conv1", 4), ("conv2", 3), ("conv3", 3)):
        x = _conv(g, x, f"vision.{name}", kernel, stride=2, pad=1)
        x = x if name == "conv3" else g.op("Relu", x)
    return _placed(g, x)


def _siglip(g: Graph, config: VisionConfig, x: str) -> str:
    x = _placed(g, _conv(g, x, "vision.patch_embedding", config.patch, stride=config.patch, pad=0))
    for i in range(config.layers):
        x = _siglip_layer(g, config, f"vision.layers.{i}", x)
    return _layer_norm(g, x, "vision.post_layernorm")


def _siglip_layer(g: Graph, config: VisionConfig, place: str, x: str) -> str:
    """x (images, tokens, width)."""
    heads, head_dim = config.heads, config.width // config.heads
    rows = g.constant([-1, config.tokens], "int64")
    y = g.reshape(_layer_norm(g, x, f"{place}.layer_norm1"), -1, config.width)
    query, key, value = (
        split_heads(g, linear(g, y, f"{place}.{which}_proj"), rows, heads, head_dim) for which in "qkv"
    )
    query = g.op("Mul", query, g.constant(1 / math.sqrt(head_dim)))
    scores = g.op("Softmax", g.op("MatMul", query, g.op("Transpose", key, perm=[0, 1, 3, 2])), axis=-1)
    mixed = g.op("Transpose", g.op("MatMul", scores, value), perm=[0, 2, 1, 3])
    attended = linear(g, g.reshape(mixed, -1, config.width), f"{place}.out_proj")
    x = g.op("Add", x, g.reshape(attended, -1, config.tokens, config.width))
    y = g.reshape(_layer_norm(g, x, f"{place}.layer_norm2"), -1, config.width)
    y = linear(g, g.op("Gelu", linear(g, y, f"{place}.fc1"), approximate="tanh"), f"{place}.fc2")
    return g.op("Add", x, g.reshape(y, -1, config.tokens, config.width))


def _layer_norm(g: Graph, x: str, name: str) -> str:
    return g.op("LayerNormalization", x, g.weight(f"{name}.weight"), g.weight(f"{name}.bias"), axis=-1, epsilon=1e-6)


def _conv(g: Graph, x: str, name: str, kernel: int, stride: int, pad: int) -> str:
    return g.op(
        "Conv",
        x,
        g.weight(f"{name}.weight"),
        g.weight(f"{name}.bias"),
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[pad] * 4,
    )


def _placed(g: Graph, x: str) -> str:
    """(images, width, down, right) -> (images, tokens, width), with each place's own vector added."""
    rows = g.op("Transpose", g.reshape(x, 0, 0, -1), perm=[0, 2, 1])
    return g.op("Add", rows, g.weight("vision.position_embedding"))
