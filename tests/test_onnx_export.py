"""Export to ONNX: equal to torch or not there at all; one loop, shared weights under their own names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from random_policy import TINY, TINY_PI05, TINY_SIGLIP, golden_of, head_only, seal_delta, seal_random, transforms_of

from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.engine import Batch
from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.errors import BundleError, ConfigError, HotpolicyError
from hotpolicy.runtime.export import export
from hotpolicy.runtime.graphs.certificate import Frames, certify, check, made_up_batch
from hotpolicy.runtime.graphs.exported import Exported
from hotpolicy.runtime.model.guided import Promise
from hotpolicy.runtime.model.pi0 import NANO, Pi0Config

CONFIGS = {"tiny": TINY, "siglip": TINY_SIGLIP, "pi05": TINY_PI05, "nano": NANO}
CAMERAS = 2


@dataclasses.dataclass(frozen=True)
class Case:
    config: Pi0Config
    bundle: Bundle
    exported: Exported

    def torch(self) -> TorchEngine:
        return TorchEngine.load(self.bundle)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    folder, made = tmp_path_factory.mktemp("exports"), {}

    def case(name: str) -> Case:
        if name not in made:
            bundle = seal_random(folder / "bundles", CONFIGS[name], CAMERAS)
            made[name] = Case(CONFIGS[name], bundle, export([bundle], folder / name))
        return made[name]

    return case


def made_up(config: Pi0Config, frames: int, cameras: int = CAMERAS) -> Batch:
    return made_up_batch(transforms_of(config, cameras), config.vision.image_size, config.vocabulary, frames)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_torch_at_any_batch_cameras_and_length(cases: Callable[[str], Case], name: str) -> None:
    case = cases(name)
    reference, engine = case.torch(), OnnxEngine.open(case.exported)
    for frames, cameras, words in ((1, CAMERAS, 6), (3, CAMERAS, 6), (2, 1, 3), (2, 3, 5)):
        batch = made_up(case.config, frames, cameras)
        batch = dataclasses.replace(batch, tokens=batch.tokens[:, :words], token_mask=batch.token_mask[:, :words])
        actions = engine.infer(batch)
        assert actions.dtype == np.float32
        np.testing.assert_allclose(actions, reference.infer(batch), atol=1e-5)


def test_certificate_is_in_the_manifest(cases: Callable[[str], Case]) -> None:
    exported = cases("nano").exported
    certificate = json.loads((exported.folder / "manifest.json").read_text())["certificate"]
    assert certificate == exported.certificate
    assert (certificate["golden"], certificate["recorded"], certificate["made_up"]) == (2, 0, 6)
    assert (certificate["precision"], certificate["bound"]) == ("fp32", 1e-4)
    assert 0 < certificate["mean_abs_error"] < certificate["max_abs_error"] < 1e-5
    scale = transforms_of(NANO, CAMERAS).action.std.max(0)
    for joint, most in zip(certificate["joints"], scale, strict=True):
        assert joint["unit"] == "deg"
        assert 0 < joint["mean"] < joint["max"] <= certificate["max_abs_error"] * most


def test_manifest_has_all_that_a_client_needs(cases: Callable[[str], Case]) -> None:
    case = cases("tiny")
    content = case.exported.content
    assert case.exported.bundle.manifest == case.bundle.manifest
    assert content["chain"] == [case.bundle.id]
    assert (content["precision"], content["opset"]) == ("fp32", 20)
    graphs = {"prefix.onnx", "prefix.onnx.data", "head.onnx", "head.onnx.data"}
    assert set(content["files"]) == {*graphs, "golden.npz"}
    golden = case.exported.golden()
    assert golden is not None
    assert golden.same(golden_of(TINY, CAMERAS))
    assert content["tools"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {path.name for path in case.exported.folder.iterdir()} == {*content["files"], "manifest.json"}


@pytest.mark.parametrize("name", CONFIGS)
def test_one_loop_and_every_weight_once_by_its_name(cases: Callable[[str], Case], name: str) -> None:
    case = cases(name)
    shapes = {tensor: info.shape for tensor, info in case.bundle.manifest.tensors.items()}
    found: set[str] = set()
    for graph in ("prefix", "head"):
        model = onnx.load(case.exported.graph(graph), load_external_data=False)
        outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
        assert all(shapes[tensor.name] == tuple(tensor.dims) for tensor in outside)
        assert not found & {tensor.name for tensor in outside}
        found |= {tensor.name for tensor in outside}
        loops = [node for node in model.graph.node if node.op_type == "Loop"]
        assert len(loops) == (graph == "head")
        assert not any(node.attribute[0].g.initializer for node in loops)
        inside = sum(tensor.ByteSize() for tensor in model.graph.initializer if not tensor.external_data)
        assert inside < 20_000  # constants, no copies of weights
    last = case.config.language.layers - 1
    unused = {name for name, graph in case.exported.places.items() if graph is None}
    assert found == set(shapes) - unused
    assert all(name.startswith(("language_norm", f"language.{last}.")) for name in unused)


def test_number_of_steps_is_an_input(cases: Callable[[str], Case]) -> None:
    case = cases("pi05")
    batch, model = made_up(case.config, 2), case.torch().model
    prefix, head = (ort.InferenceSession(str(case.exported.graph(name))) for name in ("prefix", "head"))
    names = [output.name for output in prefix.get_outputs()]
    fed = {name: getattr(batch, name) for name in ("images", "image_mask", "tokens", "token_mask")}
    seen = dict(zip(names, prefix.run(names, fed), strict=True))
    tensors = [torch.from_numpy(array) for array in fed.values()]
    state, noise = torch.from_numpy(batch.state), torch.from_numpy(batch.noise)
    assert batch.guidance is not None
    guidance = batch.guidance.arrays()
    promise = Promise(*map(torch.from_numpy, guidance.values()))
    for steps in (1, 7):
        wanted = model.flow(model.prefix(*tensors), state, noise, model.schedule(steps), promise)
        fed = {**seen, "state": batch.state, "noise": batch.noise, "steps": np.array(steps), **guidance}
        np.testing.assert_allclose(head.run(["actions"], fed)[0], wanted, atol=1e-5)


def test_a_chain_is_exported_as_the_version_at_its_end(cases: Callable[[str], Case], tmp_path: Path) -> None:
    base = cases("tiny").bundle
    first = seal_delta(tmp_path, base, head_only, seed=1)
    second = seal_delta(tmp_path, first, lambda name: name.startswith(("vision", "expert.0")), seed=2)
    exported = export([base, first, second], tmp_path / "out")
    assert (exported.bundle.id, exported.content["chain"]) == (second.id, [base.id, first.id, second.id])
    assert exported.prefix != cases("tiny").exported.prefix
    batch = made_up(TINY, 2)
    wanted = TorchEngine.load(base).derive(first).derive(second).infer(batch)
    np.testing.assert_allclose(OnnxEngine.open(exported).infer(batch), wanted, atol=1e-5)


def test_an_export_beyond_its_bound_leaves_nothing(cases: Callable[[str], Case], tmp_path: Path) -> None:
    with pytest.raises(
        BundleError,
        match=r"^certificate: ONNX Runtime in fp32 differs from torch by \S+, expected at most 1e-09 .* deg$",
    ) as e:
        export([cases("tiny").bundle], tmp_path / "deep" / "out", bound=1e-9)
    assert "\n" not in str(e.value)
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_certificate_sees_one_changed_weight(cases: Callable[[str], Case], tmp_path: Path) -> None:
    """Of every parameter that is in a graph: moving it moves the actions by more than the bound."""
    case = cases("tiny")
    engine, frames = OnnxEngine.open(case.exported), Frames((made_up(TINY, 6),), 0, 0, 6)
    spec, transforms = case.bundle.manifest.spec, transforms_of(TINY, CAMERAS)
    tensors = case.bundle.tensors()
    for name in ("vision.conv1.bias", "language.1.self_attn.k_proj.weight", "state_proj.bias", "expert_norm.weight"):
        delta = seal_delta(tmp_path, case.bundle, lambda n, name=name: n == name)
        assert not np.array_equal(delta.tensors()[name], tensors[name])
        wanted = frames.answers(TorchEngine.load(case.bundle).derive(delta))
        with pytest.raises(BundleError, match="certificate: ONNX Runtime in fp32 differs from torch"):
            check(certify(wanted, engine, frames, spec, transforms, "fp32", 1e-4))


def test_a_folder_that_is_there_is_not_touched(cases: Callable[[str], Case], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="out: expected a folder that does not exist"):
        export([cases("tiny").bundle], tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out: cannot be written: .*file: "):
        export([cases("tiny").bundle], tmp_path / "file" / "out")


def test_what_cannot_be_exported_is_named(cases: Callable[[str], Case], tmp_path: Path) -> None:
    bundle = cases("tiny").bundle
    manifest, tensors = bundle.manifest, bundle.tensors()

    def altered(**changes: object) -> Bundle:
        content = {"model": manifest.model, "tensors": tensors, **changes}
        return seal(tmp_path / "bundles", kind="full", parent=None, spec=manifest.spec,
                    transforms=manifest.transforms, provenance={}, **content)  # fmt: skip

    lacking = {name: array for name, array in tensors.items() if name != "state_proj.bias"}
    delta = seal_delta(tmp_path / "bundles", bundle, head_only)
    for chain, text in (
        ([altered(tensors=lacking)], "1 missing, first 'state_proj.bias'"),
        ([altered(model={"family": "other", "config": {}})], "model.family: expected 'pi0'"),
        ([delta], "expected a full bundle first"),
    ):
        with pytest.raises(HotpolicyError, match=text) as error:
            export(chain, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert {path.name for path in tmp_path.iterdir()} == {"bundles"}
