"""A second family is one file: loaded, served, tuned and swapped through the contract, by its name in a table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_family import FAMILY, Toy, ToyConfig
from tuning_parts import OLD, SPEC, TRANSFORMS, samples

from hotpolicy.finetune.candidate import seal_candidate
from hotpolicy.finetune.lessons import Lessons
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import strategy
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.errors import BundleError, ConfigError
from hotpolicy.runtime.export import export
from hotpolicy.runtime.model import FAMILIES, family
from hotpolicy.runtime.model.pi0 import PI0, PI05, Pi0
from hotpolicy.runtime.policy import Policy, load_policy
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.golden import Golden
from hotpolicy.runtime.versions.loader import load_with

CONFIG = ToyConfig(width=12, vocabulary=64, action_dim=3, horizon=4)
LESSONS = Lessons(new=samples(range(6)), old=samples(range(100, 103), OLD))


@pytest.fixture(autouse=True)
def toy_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in FAMILY.items():
        monkeypatch.setitem(FAMILIES, name, place)


@pytest.fixture
def toy(tmp_path: Path) -> Bundle:
    torch.manual_seed(0)
    return seal(
        tmp_path / "toys",
        kind="full",
        parent=None,
        model={"family": "toy", "config": CONFIG.to_dict()},
        tensors={name: parameter.detach().numpy() for name, parameter in Toy(CONFIG).named_parameters()},
        spec=SPEC,
        transforms=TRANSFORMS.to_dict(),
        provenance={"made_by": "test"},
    )


def tuned(policy: Policy, config: TuneConfig) -> Trainer:
    assert isinstance(policy.engine, TorchEngine)
    trainer = Trainer(policy.engine.model, policy.transforms, policy.spec, LESSONS, config)
    for _ in trainer.run():
        pass
    return trainer


@pytest.mark.parametrize(("name", "moved"), [("expert", {"heads", "expert.0"}), ("full", None)])
def test_a_toy_is_tuned_and_its_delta_swapped_in(
    toy: Bundle, tmp_path: Path, name: str, moved: set[str] | None
) -> None:
    policy = load_policy([toy])
    config = TuneConfig(strategy=name, steps=80, batch=16, draws=4, warmup=2, evaluate_every=80, rate=2e-2)
    trainer = tuned(policy, config)
    assert np.mean(trainer.outcome.curves.train[-10:]) < 0.8 * np.mean(trainer.outcome.curves.train[:5])
    assert (trainer.cache_mb > 0) == (name == "expert")
    delta = seal_candidate(tmp_path / "deltas", [toy], trainer.outcome, LESSONS, config)
    groups = trainer.outcome.model.groups()
    assert {groups[tensor] for tensor in delta.manifest.tensors} == (moved or set(groups.values()))
    assert "spare" not in delta.manifest.tensors
    golden = Golden.blank(SPEC, CONFIG.horizon)
    before, after = (p.infer(golden.observations(SPEC), golden.noise) for p in (policy, policy.derive(delta)))
    assert np.abs(before - after).max() > 1e-3


def test_a_toy_is_served(toy: Bundle, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.add(toy.folder)
    slot = Slot(store, load_with("torch"))
    config = ServeConfig(endpoint=f"ipc://{tmp_path}/data", control=f"ipc://{tmp_path}/control")
    with PolicyServer(config, slot, Control(slot, store)) as server, PolicyClient(server.endpoint) as client:
        golden = Golden.blank(SPEC, CONFIG.horizon)
        chunk = client.infer(golden.observations(SPEC)[0])
        assert chunk.version == toy.id
        assert chunk.actions.shape == (4, 3)


def test_what_a_family_cannot_do_is_said(toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model\.family: expected 'pi0' to export, got 'toy'"):
        export([toy], tmp_path / "exported")
    monkeypatch.delitem(FAMILIES, "toy")
    with pytest.raises(BundleError, match=r"model\.family: expected 'pi0', got 'toy'"):
        load_policy([toy])


def test_a_config_that_is_not_the_familys_is_refused(toy: Bundle) -> None:
    with pytest.raises(TypeError, match="colour"):
        Toy.of({**CONFIG.to_dict(), "colour": 1})
    assert family("pi0") is Pi0


@pytest.mark.parametrize("config", [PI0, PI05], ids=["pi0", "pi05"])
@pytest.mark.parametrize("name", ["heads", "expert", "top-2", "full", "progressive"])
def test_strategies_name_groups_that_the_model_has(config: object, name: str) -> None:
    with torch.device("meta"):
        model = Pi0(config)  # type: ignore[arg-type]
    known = set(model.groups().values())
    for stage in strategy(name, model).stages:
        assert set(stage.rates) <= known
        assert not set(stage.learning(model)) & model.idle()


def test_naming_families_needs_no_torch() -> None:
    code = "import sys; from hotpolicy.runtime.model import FAMILIES; print('torch' in sys.modules, *FAMILIES)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "pi0"]
