"""What a provider compiled is never found by another version: with a stand-in that, like TensorRT's cache, looks at the
graph and not at the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from random_policy import TINY, head_only, seal_delta, seal_random

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine.onnx_cache import Machine
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.onnx_provider import PROVIDERS, provider_options, this_machine
from hotpolicy.runtime.engine.onnx_session import weights_digest
from hotpolicy.runtime.export import export

ORIN = Machine("8.7", {"onnxruntime": "1.23.0", "cuda driver": "12060", "tensorrt": "100300"})
TENSORRT = PROVIDERS["tensorrt"]
Options = dict[str, str]


class StandIn:
    """Compiles weights into an engine, and keeps it under the graph's name in the folder it was given."""

    def compile(self, options: Options, graph: str, weights: str) -> str:
        """-> the weights that its engine computes with."""
        if options["trt_engine_cache_enable"] == "0":
            return weights
        kept = Path(options["trt_engine_cache_path"]) / f"{graph}.engine"
        if not kept.exists():
            kept.write_text(weights)
        return kept.read_text()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return seal_random(tmp_path_factory.mktemp("bundles"), TINY)


@pytest.fixture(scope="module")
def engines(base: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxEngine]:
    folder = tmp_path_factory.mktemp("exports")
    first, half = (OnnxEngine.open(export([base], folder / p, p)) for p in ("fp32", "fp16"))
    other = seal_random(folder / "other", TINY, seed=3)
    return {
        "first": first,
        "a head's delta": first.derive(seal_delta(folder, base, head_only)),
        "another delta": first.derive(seal_delta(folder, base, head_only, seed=2)),
        "exported anew": OnnxEngine.open(export([other], folder / "other-onnx")),
        "half precision": half,
    }


def options_of(engine: OnnxEngine, cache: Path | None, machine: Machine = ORIN) -> tuple[Options, str, str]:
    """Of the head: the options that a session would get, the graph's digest and the weights'."""
    exported = engine.exported
    weights = weights_digest(exported, "head", engine.tensors)
    # the same graph for all: the harder case, where only the weights differ
    options = provider_options(TENSORRT, "graph", weights, exported.precision, exported.shapes("head"), cache, machine)
    return options, "graph", weights


def test_two_versions_never_share_an_entry(engines: dict[str, OnnxEngine], tmp_path: Path) -> None:
    provider, found = StandIn(), {}
    for _ in range(2):  # compiled, and then found again
        for name, engine in engines.items():
            options, graph, weights = options_of(engine, tmp_path)
            assert provider.compile(options, graph, weights) == weights, name
            found[name] = options["trt_engine_cache_path"]
            assert options["trt_timing_cache_path"] == found[name]
    assert len(set(found.values())) == len(engines)


def test_the_stand_in_has_the_fault_that_is_guarded_against(engines: dict[str, OnnxEngine], tmp_path: Path) -> None:
    shared = TENSORRT.cached(tmp_path)  # type: ignore[misc]
    weights = [options_of(engine, None)[2] for engine in engines.values()]
    assert [StandIn().compile(shared, "graph", w) for w in weights] == [weights[0]] * len(weights)


@pytest.mark.parametrize(
    "change",
    [
        lambda given: {**given, "graph": "other"},
        lambda given: {**given, "weights": "other"},
        lambda given: {**given, "precision": "fp16"},
        lambda given: {**given, "shapes": {**given["shapes"], "noise": [[1, 4, 5], [1, 4, 5], [2, 4, 5]]}},
        lambda given: {**given, "machine": dataclasses.replace(ORIN, compute_capability="11.0")},
        *(
            lambda given, tool=tool: {
                **given, "machine": dataclasses.replace(ORIN, versions={**ORIN.versions, tool: "other"})
            }
            for tool in ORIN.versions
        ),
    ],
    ids=["graph", "weights", "precision", "shapes", "capability", *ORIN.versions],
)  # fmt: skip
def test_everything_an_engine_is_made_of_is_in_its_path(tmp_path: Path, change: Callable[[dict], dict]) -> None:
    given = {
        "provider": TENSORRT, "graph": "graph", "weights": "weights", "precision": "fp32",
        "shapes": {"noise": [[1, 4, 5], [1, 4, 5], [8, 4, 5]]}, "cache": tmp_path, "machine": ORIN,
    }  # fmt: skip
    paths = [provider_options(**each)["trt_engine_cache_path"] for each in (given, dict(given), change(given))]
    assert paths[0] == paths[1] != paths[2]


def test_nothing_is_kept_where_the_machine_cannot_be_told(engines: dict[str, OnnxEngine], tmp_path: Path) -> None:
    for machine in (
        Machine(None, ORIN.versions),
        Machine("8.7", {**ORIN.versions, "tensorrt": None}),
    ):
        options, _, _ = options_of(engines["first"], tmp_path, machine)
        assert options["trt_engine_cache_enable"] == "0"
    assert options_of(engines["first"], None)[0]["trt_engine_cache_enable"] == "0"
    assert list(tmp_path.iterdir()) == []
    assert not this_machine(PROVIDERS["cpu"]).known


def test_shapes_that_are_compiled_for(engines: dict[str, OnnxEngine]) -> None:
    shapes = engines["first"].exported.shapes("prefix")
    assert shapes["images"] == [[1, 1, 32, 32, 3], [1, 2, 32, 32, 3], [8, 2, 32, 32, 3]]
    options, _, _ = options_of(engines["first"], None)
    assert "keys.0:8x2x38x8," in options["trt_profile_max_shapes"]
    assert "noise:1x4x5" in options["trt_profile_opt_shapes"]
