"""Exports in less than fp32: what they compute, how far off they may be, what they keep, and deltas on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from random_policy import TINY, TINY_PI05, TINY_SIGLIP, golden_of, head_only, seal_delta, seal_random, transforms_of

from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.onnx_provider import OnnxOptions
from hotpolicy.runtime.engine.processor import overflows_int8
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.errors import BundleError, ConfigError
from hotpolicy.runtime.export import export
from hotpolicy.runtime.graphs.calibration import quantised
from hotpolicy.runtime.graphs.certificate import made_up_batch, split
from hotpolicy.runtime.graphs.exported import Exported
from hotpolicy.runtime.graphs.quantise import Plan, decode, encode, steps_of
from hotpolicy.runtime.versions.golden import FILE

CONFIGS = {"tiny": TINY, "siglip": TINY_SIGLIP, "pi05": TINY_PI05}
SMALLER = ("fp16", "int8", "int8-static")
FREE = 10.0  # a bound that all of these keep: weights are random
BATCH = made_up_batch(transforms_of(TINY, 2), TINY.vision.image_size, TINY.vocabulary, 3)
Made = Callable[[str, str], tuple[Bundle, Exported]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Name of a config and precision -> the bundle and its export."""
    folder, known = tmp_path_factory.mktemp("exports"), {}

    def make(name: str, precision: str) -> tuple[Bundle, Exported]:
        if (name, precision) not in known:
            bundle = seal_random(folder / "bundles", CONFIGS[name])
            known[name, precision] = bundle, export([bundle], folder / f"{name}-{precision}", precision, bound=FREE)
        return known[name, precision]

    return make


def plan_of(exported: Exported) -> Plan:
    content = exported.content
    return Plan(exported.precision, frozenset(content["keep"]), {n: tuple(r) for n, r in content["ranges"].items()})


@pytest.mark.parametrize("precision", SMALLER)
@pytest.mark.parametrize("name", ["siglip", "pi05"])
def test_computes_what_torch_computes_with_rounded_numbers(made: Made, name: str, precision: str) -> None:
    """Integers in ONNX Runtime, and torch with the same rounding in fp32: where no number lies so near the middle of
    two steps that it falls to either side they are equal, else nearer than torch without rounding. Two roundings that
    had nothing to do with each other would be 1.4 times as far."""
    bundle, exported = made(name, precision)
    engine, reference = OnnxEngine.open(exported), TorchEngine.load(bundle, traced=False)
    config = CONFIGS[name]
    frames = made_up_batch(transforms_of(config, 2), config.vision.image_size, config.vocabulary, 4)
    products = [name for name, form in exported.forms.items() if form != "fp32" and name != "embedding.weight"]
    far, near = [], []
    for batch in split(frames, 1):
        exact, got = reference.infer(batch), engine.infer(batch)
        with quantised(reference.model, plan_of(exported), products):
            rounded = reference.infer(batch)
        far.append(np.abs(got - exact).mean())
        near.append(np.abs(got - rounded).mean())
    assert np.mean(far) > 1e-6
    assert np.mean(near) < 0.8 * np.mean(far)


@pytest.mark.parametrize("precision", SMALLER)
def test_keeps_what_is_sensitive_and_says_so(made: Made, precision: str) -> None:
    _, exported = made("pi05", precision)
    forms, kept = exported.forms, exported.content["keep"]
    assert {"action_in_proj.weight", "action_out_proj.weight", "expert.0.input_layernorm.dense.weight"} <= set(kept)
    assert all(forms[name] == "fp32" for name in kept)
    assert forms["embedding.weight"] == "fp16"
    small = "fp16" if precision == "fp16" else "int8"
    assert {forms[n] for n in ("vision.layers.0.fc1.weight", "expert.1.mlp.down_proj.weight")} == {small}
    assert all(forms[n] == "fp32" for n in forms if n.endswith((".bias", "norm.weight", "patch_embedding.weight")))
    small_ones = {name for name in forms if forms[name] == "int8"}
    assert set(exported.content["ranges"]) == (small_ones if precision == "int8-static" else set())


@pytest.mark.parametrize("precision", SMALLER)
def test_weights_lie_once_by_their_name_and_outside_the_loop(made: Made, precision: str) -> None:
    bundle, exported = made("tiny", precision)
    for graph in ("prefix", "head"):
        model = onnx.load(exported.graph(graph), load_external_data=False)
        outside = {tensor.name: tensor for tensor in model.graph.initializer if tensor.external_data}
        mine = {name for name, place in exported.places.items() if place == graph}
        assert {name.removesuffix(".scale") for name in outside} == mine
        for name in mine:
            shape = bundle.manifest.tensors[name].shape
            dims = tuple(outside[name].dims)
            assert dims == (shape[::-1] if exported.forms[name] == "int8" else shape)
        assert not any(node.attribute[0].g.initializer for node in model.graph.node if node.op_type == "Loop")
    sizes = [sum(f.stat().st_size for f in made("siglip", p)[1].folder.glob("*.data")) for p in ("fp32", precision)]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("precision", SMALLER)
def test_a_delta_is_swapped_in_by_name(made: Made, tmp_path: Path, precision: str) -> None:
    """As if the version had been exported; with ranges that were measured before, nearly so."""
    bundle, exported = made("tiny", precision)
    engine, delta = OnnxEngine.open(exported), seal_delta(tmp_path / "bundles", bundle, head_only)
    before, derived = engine.infer(BATCH), engine.derive(delta)
    assert derived.prefix is engine.prefix
    whole = OnnxEngine.open(export([bundle, delta], tmp_path / "whole", precision, bound=FREE)).infer(BATCH)
    if precision == "int8-static":
        wanted = TorchEngine.load(bundle).derive(delta).infer(BATCH)
        assert np.abs(derived.infer(BATCH) - wanted).mean() < 2 * np.abs(whole - wanted).mean()
    else:
        np.testing.assert_array_equal(derived.infer(BATCH), whole)
    assert np.abs(derived.infer(BATCH) - before).max() > 0.01
    np.testing.assert_array_equal(engine.infer(BATCH), before)


def test_a_head_in_one_precision_is_refused_on_a_prefix_in_another(made: Made) -> None:
    engine = OnnxEngine.open(made("tiny", "fp32")[1])
    for precision in SMALLER:
        with pytest.raises(BundleError, match="its head belongs to prefix"):
            engine.with_head(made("tiny", precision)[1].folder)


@pytest.mark.parametrize("precision", SMALLER)
def test_beyond_its_bound_there_is_no_export(made: Made, tmp_path: Path, precision: str) -> None:
    bundle, _ = made("tiny", precision)
    with pytest.raises(
        BundleError, match=rf"^certificate: ONNX Runtime in {precision} differs .* most in joint_\d\.pos"
    ):
        export([bundle], tmp_path / "out", precision, bound=1e-7)
    assert list(tmp_path.iterdir()) == []


def test_layers_that_harm_most_are_kept_until_the_bound_holds(made: Made, tmp_path: Path) -> None:
    bundle, loose = made("siglip", "int8")
    error = loose.certificate["max_abs_error"]
    tight = export([bundle], tmp_path / "out", "int8", bound=error * 0.9)
    assert tight.certificate["max_abs_error"] <= error * 0.9
    more = set(tight.content["keep"]) - set(loose.content["keep"])
    assert more
    assert all(tight.forms[name] == "fp32" and loose.forms[name] == "int8" for name in more)
    assert "int8" in tight.forms.values()
    OnnxEngine.open(tight).derive(seal_delta(tmp_path / "bundles", bundle, head_only))


def test_recorded_frames_are_measured_and_calibrate(made: Made, tmp_path: Path) -> None:
    bundle, before = made("tiny", "int8-static")
    seen = golden_of(TINY, 2, 4).observations(bundle.manifest.spec)
    exported = export([bundle], tmp_path / "out", "int8-static", bound=FREE, recorded=seen * 2)
    assert [exported.certificate[kind] for kind in ("golden", "recorded", "made_up")] == [2, 8, 6]
    ranges = exported.content["ranges"]
    assert ranges != before.content["ranges"]
    for name, (low, high) in before.content["ranges"].items():
        assert ranges[name][0] <= low
        assert high <= ranges[name][1]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_version_in_bf16_is_widened_and_takes_its_deltas(tmp_path: Path, precision: str) -> None:
    full = seal_random(tmp_path / "fp32", TINY)

    def in_bf16(bundle: Bundle, parent: str | None) -> Bundle:
        manifest = bundle.manifest
        return seal(tmp_path / "bf16", kind=manifest.kind, parent=parent, model=manifest.model, spec=manifest.spec,
                    tensors={name: array.astype(ml_dtypes.bfloat16) for name, array in bundle.tensors().items()},
                    transforms=manifest.transforms, provenance={},
                    files={FILE: bundle.file(FILE)} if manifest.files else {})  # fmt: skip

    base = in_bf16(full, None)
    head = seal_delta(tmp_path / "fp32", full, head_only)
    delta = in_bf16(head, base.id)
    exported = export([base], tmp_path / "out", precision, bound=None if precision == "fp32" else FREE)
    assert {t["dtype"] for t in exported.content["tensors"].values()} == {"BF16"}
    assert exported.tensors == base.manifest.tensors
    engine = OnnxEngine.open(exported)
    derived = engine.derive(delta)
    if precision == "fp32":
        wanted = TorchEngine.load(base, dtype="fp32").derive(delta).infer(BATCH)
        np.testing.assert_allclose(derived.infer(BATCH), wanted, atol=1e-5)
    assert np.abs(derived.infer(BATCH) - engine.infer(BATCH)).max() > 0.01
    wide = seal(tmp_path / "wide", kind="delta", parent=base.id, model=base.manifest.model, spec=base.manifest.spec,
                tensors=head.tensors(), transforms=base.manifest.transforms, provenance={})  # fmt: skip
    with pytest.raises(BundleError, match=r"parent has BF16 .*, delta F32"):
        engine.derive(wide)


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
def test_a_parameter_and_its_form(form: str) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((6, 40)) * 10.0 ** np.arange(-3, 3)[:, None]).astype(np.float32)
    weight[2] = 0
    found = decode(encode("w", weight, form), "w", form)
    most = np.abs(weight).max(1, keepdims=True)
    worst = {"fp32": 0.0, "fp16": 2.0**-11, "int8": 0.5001 / 127}[form]
    assert (np.abs(found - weight) <= worst * most).all()
    for dtype in (ml_dtypes.bfloat16, np.float16):
        same = encode("w", weight.astype(dtype), form)
        for name, array in encode("w", weight.astype(dtype).astype(np.float32), form).items():
            np.testing.assert_array_equal(same[name], array)


def test_what_does_not_fit_a_form_is_named() -> None:
    with pytest.raises(BundleError, match=r"^w: has numbers too large for fp16"):
        encode("w", np.array([[70000.0]], np.float32), "fp16")
    with pytest.raises(ConfigError, match="precision: expected one of fp32, fp16, int8, int8-static, got 'int4'"):
        export([], "nowhere", "int4")
    with pytest.raises(BundleError, match=r"^w: expected a calibrated range"):
        Plan("int8-static").range("w")


def test_a_range_has_a_step_that_is_zero() -> None:
    for low, high in ((-1.0, 3.0), (0.0, 2.0), (-5.0, 0.0), (0.0, 0.0)):
        size, zero = steps_of((low, high))
        assert 0 <= zero <= 255
        assert abs((0 - zero) * size - low) <= size
        assert abs((255 - zero) * size - high) <= max(size, 0 if high > low else 255)


def test_no_worse_than_the_quantiser_that_comes_with_the_runtime(made: Made, tmp_path: Path) -> None:
    """ONNX Runtime's own, dynamic and per channel, over the same prefix graph."""
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import QuantType, quantize_dynamic

    (_, full), (_, ours) = made("siglip", "fp32"), made("siglip", "int8")
    theirs = tmp_path / "theirs.onnx"
    quantize_dynamic(full.graph("prefix"), theirs, op_types_to_quantize=["Gemm", "MatMul"], per_channel=True,
                     weight_type=QuantType.QInt8)  # fmt: skip
    batch = made_up_batch(transforms_of(TINY_SIGLIP, 2), TINY_SIGLIP.vision.image_size, TINY_SIGLIP.vocabulary, 1)
    fed = {name: getattr(batch, name) for name in ("images", "image_mask", "tokens", "token_mask")}
    last = f"keys.{TINY_SIGLIP.language.layers - 1}"
    graphs = (full.graph("prefix"), ours.graph("prefix"), theirs)
    exact, mine, other = (InferenceSession(str(path)).run([last], fed)[0] for path in graphs)
    assert 0 < np.abs(mine - exact).mean() <= 1.2 * np.abs(other - exact).mean()


def test_a_provider_says_which_precisions_are_not_for_it(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from hotpolicy.runtime.engine import onnx_provider

    cpu = onnx_provider.PROVIDERS["cpu"]
    monkeypatch.setitem(onnx_provider.PROVIDERS, "cpu", dataclasses.replace(cpu, precisions=("fp32", "fp16")))
    for precision in ("int8", "int8-static"):
        with pytest.raises(
            ConfigError, match=rf"provider: CPU.* is for exports in fp32 or fp16, this one is {precision}"
        ):
            OnnxEngine.open(made("tiny", precision)[1], OnnxOptions(provider="cpu"))


@pytest.mark.parametrize("precision", ["int8", "int8-static"])
def test_a_processor_that_would_overflow_is_told_to_be_exact(
    made: Made, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answers as here, where there is nothing to work around."""
    exported = made("siglip", precision)[1]
    frames = made_up_batch(transforms_of(TINY_SIGLIP, 2), TINY_SIGLIP.vision.image_size, TINY_SIGLIP.vocabulary, 2)
    usual = OnnxEngine.open(exported).infer(frames)
    monkeypatch.setattr("hotpolicy.runtime.engine.onnx_session.overflows_int8", lambda: True)
    np.testing.assert_allclose(OnnxEngine.open(exported).infer(frames), usual, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "overflows"),
    [
        ("fpu sse2 avx avx2 avx512f", True),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("fpu avx2 avx_vnni", False),
        ("fpu sse2", False),
    ],
)
def test_which_processors_overflow(tmp_path: Path, flags: str, overflows: bool) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor\t: 0\nmodel name\t: some\nflags\t\t: {flags}\n")
    assert overflows_int8(facts) is overflows
    facts.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    overflows_int8.cache_clear()
    assert not overflows_int8(facts)
    assert not overflows_int8(tmp_path / "nowhere")
    overflows_int8.cache_clear()
