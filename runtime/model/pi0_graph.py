"""pi0.py once more, as two ONNX graphs: `prefix` (once per frame) and `head` (the whole flow from noise to actions).

What does not change from one Euler step to the next is computed before the loop: everything about time (embedding,
its half of the first layer, pi0.5's norms) for all steps at once, and pi0's state token, which sees the prefix and
itself only, so that its keys and values join the prefix's. What remains in the loop is a stack of layers over the
action tokens, which see all there is.
"""

from __future__ import annotations

import math

import numpy as np

from hotpolicy.runtime.graphs.graph import Graph
from hotpolicy.runtime.graphs.quantise import Plan
from hotpolicy.runtime.model.gemma_graph import Layers, adaptive_norm, gemma_norm, linear, mask_bias, rotation, silu
from hotpolicy.runtime.model.pi0 import Pi0Config
from hotpolicy.runtime.model.vision_graph import see

Memory = list[tuple[str, str]]  # per layer keys and values (batch, kv_heads, tokens, head_dim)


def prefix_graph(config: Pi0Config, plan: Plan) -> Graph:
    """images (batch, cameras, height, width, 3) uint8, image_mask (batch, cameras), tokens (batch, length) int64,
    token_mask (batch, length) -> keys.0, values.0, ... and mask (batch, prefix)."""
    g, size, language = Graph("prefix", plan=plan), config.vision.image_size, config.language
    images = g.input("images", "uint8", ("batch", "cameras", size, size, 3))
    image_mask = g.input("image_mask", "bool", ("batch", "cameras"))
    tokens = g.input("tokens", "int64", ("batch", "length"))
    token_mask = g.input("token_mask", "bool", ("batch", "length"))

    mask = _prefix_mask(g, config, image_mask, token_mask)
    positions = g.op("Sub", g.op("CumSum", g.cast(mask, "float32"), g.constant(1, "int64")), g.constant(1))
    layers = Layers(
        g, language, "language", gemma_norm(g), g.op("Shape", mask), rotation(g, positions, language.head_dim)
    )
    bias = mask_bias(g, mask)
    words = g.op("Mul", g.rows("embedding.weight", tokens), g.constant(math.sqrt(language.width)))
    x = g.reshape(g.op("Concat", see(g, config, images), words, axis=1), -1, language.width)
    for i in range(language.layers):
        y, _ = layers.enter(i, x)
        key, value = layers.key_value(i, y)
        g.output(f"keys.{i}", key, "float32", ("batch", language.kv_heads, "prefix", language.head_dim))
        g.output(f"values.{i}", value, "float32", ("batch", language.kv_heads, "prefix", language.head_dim))
        if i < language.layers - 1:  # of the last layer only keys and values are needed
            x = layers.finish(i, x, layers.attend(i, y, key, value, bias))
    g.output("mask", mask, "bool", ("batch", "prefix"))
    return g


def head_graph(config: Pi0Config, plan: Plan) -> Graph:
    """keys.0, values.0, ..., mask as the prefix gives them, state (batch, action_dim; pi0.5 reads its state in the
    prompt, not here), noise (batch, horizon, action_dim), steps () int64, and `engine.Guidance`: previous (batch,
    horizon, action_dim), weight (batch, horizon; zeros for a row without), limit (batch,) -> actions, normalised."""
    g, expert, chunk = Graph("head", plan=plan), config.expert, ("batch", config.horizon, config.action_dim)
    kept = ("batch", expert.kv_heads, "prefix", expert.head_dim)
    memory = [(g.input(f"keys.{i}", "float32", kept), g.input(f"values.{i}", "float32", kept)) for i in _layers(config)]
    mask = g.input("mask", "bool", ("batch", "prefix"))
    state = g.input("state", "float32", ("batch", config.action_dim))
    noise = g.input("noise", "float32", chunk)
    steps = g.input("steps", "int64", ())
    previous = g.input("previous", "float32", chunk)
    weight = g.input("weight", "float32", ("batch", config.horizon))
    limit = g.input("limit", "float32", ("batch",))

    bias = mask_bias(g, mask)
    seen = g.op("ReduceSum", g.cast(mask, "float32"), g.constant([1], "int64"), keepdims=1)
    if not config.pi05:
        memory, bias = _read_state(g, config, memory, _pad(g, bias, 1), seen, state)
        seen = g.op("Add", seen, g.constant(1))
    positions = g.op("Add", seen, g.constant(np.arange(config.horizon)))
    turn = rotation(g, positions, expert.head_dim)
    pulls = _pulls(g, steps, weight, limit)
    body = _step(g, config, memory, _pad(g, bias, config.horizon), turn, steps, previous, pulls)
    g.output("actions", g.loop(steps, noise, body), "float32", chunk)
    return g


def _prefix_mask(g: Graph, config: Pi0Config, image_mask: str, token_mask: str) -> str:
    """Of a camera that is absent no token may be seen: (batch, prefix)."""
    per_token = g.op("Unsqueeze", image_mask, g.constant([2], "int64"))
    per_token = g.op("Expand", per_token, g.constant([1, 1, config.vision.tokens], "int64"))
    return g.op("Concat", g.reshape(per_token, 0, -1), token_mask, axis=1)


def _read_state(g: Graph, config: Pi0Config, memory: Memory, bias: str, seen: str, state: str) -> tuple[Memory, str]:
    """The state token's way through the expert: the memory with its keys and values at the end, and its bias."""
    expert = config.expert
    rows = g.constant([-1, 1], "int64")
    layers = Layers(g, expert, "expert", gemma_norm(g), rows, rotation(g, seen, expert.head_dim))
    x, grown = linear(g, state, "state_proj"), []
    for i in _layers(config):
        y, _ = layers.enter(i, x)
        key, value = _extend(g, memory[i], layers.key_value(i, y))
        grown.append((key, value))
        if i < expert.layers - 1:
            x = layers.finish(i, x, layers.attend(i, y, key, value, bias))
    return grown, bias


def _step(
    g: Graph, config: Pi0Config, memory: Memory, bias: str, turn: tuple[str, str], steps: str, previous: str, pulls: str
) -> Graph:
    """One Euler step as the body of a loop over x_t; what all steps share is computed in `g`, around the loop."""
    expert, body, chunk = config.expert, g.body("step"), ("batch", config.horizon, config.action_dim)
    index = body.input("index", "int64", ())
    go_on = body.input("go_on", "bool", ())
    x_t = body.input("x_t", "float32", chunk)

    x = linear(body, body.reshape(x_t, -1, config.action_dim), "action_in_proj")
    if config.step_embedding:
        x = body.op("Add", body.reshape(x, -1, config.horizon, expert.width), g.weight("step_embedding"))
        x = body.reshape(x, -1, expert.width)
    times = _times(g, steps)
    embedded = _time_embedding(g, times, expert.width)
    if config.pi05:
        known = silu(g, linear(g, silu(g, linear(g, embedded, "time_mlp_in")), "time_mlp_out"))
        norm = adaptive_norm(g, body, known, index)
    else:
        x, norm = _join_time(g, body, x, embedded, index, expert.width), gemma_norm(body)
    layers = Layers(body, expert, "expert", norm, g.constant([-1, config.horizon], "int64"), turn)
    for i in _layers(config):
        y, gate = layers.enter(i, x)
        key, value = _extend(body, memory[i], layers.key_value(i, y))
        x = layers.finish(i, x, layers.attend(i, y, key, value, bias), gate)
    velocity = linear(body, norm("expert_norm", x)[0], "action_out_proj")
    velocity = body.reshape(velocity, -1, config.horizon, config.action_dim)
    velocity = _bend(body, velocity, x_t, previous, *(body.op("Gather", of, index, axis=0) for of in (times, pulls)))

    body.output("go_on_too", go_on, "bool", ())
    moved = body.op("Sub", x_t, body.op("Div", velocity, g.cast(steps, "float32")))
    body.output("x_next", moved, "float32", chunk)
    return body


def _bend(g: Graph, velocity: str, x_t: str, previous: str, t: str, pull: str) -> str:
    """`guided.Guide.bend`."""
    missing = g.op("Add", g.op("Sub", previous, x_t), g.op("Mul", velocity, t))
    return g.op("Sub", velocity, g.op("Mul", pull, missing))


def _pulls(g: Graph, steps: str, weight: str, limit: str) -> str:
    """(steps, batch, horizon, 1): what `guided.Guide` multiplies by in every step. fp32 counts steps exactly."""
    index = g.cast(_index(g, steps), "float32")
    left = g.op("Sub", g.cast(steps, "float32"), index)
    over = g.op("Mul", left, g.op("Max", index, g.constant(1)))
    strength = g.op("Div", g.op("Add", g.op("Mul", left, left), g.op("Mul", index, index)), over)
    bounded = g.op("Min", g.op("Unsqueeze", strength, g.constant([1], "int64")), limit)
    shares = g.op("Unsqueeze", weight, g.constant([2], "int64"))
    return g.op("Mul", g.op("Unsqueeze", bounded, g.constant([2, 3], "int64")), shares)


def _index(g: Graph, steps: str) -> str:
    """(steps,) int64: 0, 1, ..."""
    return g.op("Range", g.constant(0, "int64"), steps, g.constant(1, "int64"))


def _times(g: Graph, steps: str) -> str:
    """(steps,) float32: t = 1 - i / steps, rounded to fp32 as torch does."""
    passed = g.op("Div", g.cast(_index(g, steps), "float64"), g.cast(steps, "float64"))
    return g.cast(g.op("Sub", g.constant(1, "float64"), passed), "float32")


def _time_embedding(g: Graph, times: str, width: int) -> str:
    """(steps, width), in fp64 as openpi does."""
    t = g.op("Unsqueeze", g.cast(times, "float64"), g.constant([1], "int64"))
    period = 4e-3 * (4.0 / 4e-3) ** np.linspace(0, 1, width // 2)
    angle = g.op("Mul", t, g.constant(2 * math.pi / period, "float64"))
    # the cosine as a sine: ONNX Runtime 1.23, the newest for Python 3.10, has no Cos in fp64
    both = g.op("Concat", angle, g.op("Add", angle, g.constant(math.pi / 2, "float64")), axis=1)
    return g.cast(g.op("Sin", both), "float32")


def _join_time(g: Graph, body: Graph, actions: str, times: str, index: str, width: int) -> str:
    """The first layer takes [action | time]; its time half is the same for every action, so it is done apart."""
    weight, name = g.weight("action_time_mlp_in.weight"), "action_time_mlp_in.bias"
    of_action, of_time = g.ops("Split", 2, weight, g.constant([width, width], "int64"), axis=1)
    known = g.op("Gemm", times, of_time, g.weight(name), transB=1)
    joined = body.op("Add", body.op("Gemm", actions, of_action, transB=1), body.op("Gather", known, index, axis=0))
    return linear(body, silu(body, joined), "action_time_mlp_out")


def _extend(g: Graph, past: tuple[str, str], new: tuple[str, str]) -> tuple[str, str]:
    return g.op("Concat", past[0], new[0], axis=2), g.op("Concat", past[1], new[1], axis=2)


def _pad(g: Graph, bias: str, tokens: int) -> str:
    """Room at the end for tokens that all may see."""
    return g.op("Pad", bias, g.constant([0, 0, 0, 0, 0, 0, 0, tokens], "int64"))


def _layers(config: Pi0Config) -> range:
    return range(config.expert.layers)
