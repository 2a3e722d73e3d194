"""`hotpolicy import` as a user calls it: presets and flags, the coverage table, and serving what was imported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calling import call
from checkpoints import HORIZON, JOINTS, SLOTS, blank, write_lerobot, write_openpi, write_settings
from published_keys import published
from safetensors.numpy import load_file, save_file

from hotpolicy.launch.import_settings import PRESETS, Flags, load_settings, presets, read_settings
from hotpolicy.launch.processes import Child
from hotpolicy.runtime.checkpoint import certify
from hotpolicy.runtime.checkpoint.coverage import account
from hotpolicy.runtime.checkpoint.importer import Extras, import_checkpoint, read_checkpoint
from hotpolicy.runtime.checkpoint.settings import Settings, Stated, resolve
from hotpolicy.runtime.checkpoint.sizes import Heads, infer_config
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.errors import BundleError, ConfigError
from hotpolicy.runtime.model.pi0 import PI0, PI05, Pi0Config
from hotpolicy.runtime.model.weights import EMBEDDING, published_to_ours
from hotpolicy.runtime.policy import load_policy
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.tensor_file import Entry

# What openpi's training configurations say: family -> horizon, tokens, normalisation, prompt.
PUBLISHED = {
    "droid": {False: (10, 48, "mean_std", "pi0"), True: (15, 200, "quantile", "pi05")},
    "libero": {False: (50, 48, "mean_std", "pi0"), True: (10, 200, "quantile", "pi0")},
    "aloha": {False: (50, 48, "mean_std", "pi0"), True: (50, 200, "quantile", "pi05")},
    "so101": {False: (50, 48, "mean_std", "pi0"), True: (50, 200, "quantile", "pi05")},
}
RELATIVE = {  # openpi's delta masks
    ("libero", False): (*(True,) * 6, False, False),
    ("aloha", False): (*(True,) * 6, False) * 2,
    ("aloha", True): (*(True,) * 6, False) * 2,
}
RATES = {"droid": 15, "libero": 20, "aloha": 50, "so101": 30}


def test_presets_come_along() -> None:
    assert presets() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("pi05", [False, True])
def test_a_preset_is_what_was_published(name: str, pi05: bool) -> None:
    settings = load_settings(name, None, Flags())
    robot = resolve(settings, Stated("the weights"), pi05)
    assert (robot.horizon, robot.max_tokens, robot.normalisation, robot.prompt) == PUBLISHED[name][pi05]
    assert robot.relative == RELATIVE.get((name, pi05), (False,) * len(robot.joints))
    assert (robot.rate_hz, robot.steps) == (RATES[name], 10)
    assert list(robot.slots) == ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]


def test_a_state_with_more_entries_than_the_action(tmp_path: Path) -> None:
    """LIBERO: eight numbers seen, seven commanded; the last stays where it is measured."""
    path = write_openpi(tmp_path / "checkpoint", "pi05")
    numbers = {"mean": [1.0] * 8, "std": [2.0] * 8, "q01": [-2.0] * 8, "q99": [3.0] * 8}
    seven = {name: values[:7] for name, values in numbers.items()}
    (tmp_path / "stats.json").write_text(json.dumps({"norm_stats": {"state": numbers, "actions": seven}}))
    settings = replace(load_settings("libero", None, Flags()), heads=Heads(8, 2))
    extras = Extras(stats=tmp_path / "stats.json")
    imported = import_checkpoint(read_checkpoint(path), tmp_path / "out", settings, extras)
    policy = load_policy([imported.bundle])
    seen = blank(policy.spec)
    seen.state[7] = 0.03
    actions = policy.infer([seen])[0]
    np.testing.assert_allclose(actions[:, 7], 0.03, atol=0.01)
    assert np.abs(actions[:, :7]).max() > 0.1


def test_the_table_accounts_for_every_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, robot = write_openpi(tmp_path / "checkpoint", "pi0"), write_settings(tmp_path / "robot.yaml")
    code, out, err = call(capsys, monkeypatch, "import", path, "--settings", robot, "--out", tmp_path / "out", "--try")
    assert (code, err) == (0, "")
    rows = {line[:15].strip(): line[15:].split() for line in out.splitlines()}
    assert rows["embedding"] == ["12,800", "1", "1", "·", "·", "·"]
    assert rows["action expert"] == ["10,488", "19", "·", "1", "·", "·"]
    parts = ("vision", "projector", "embedding", "language layers", "action expert", "projections")
    assert (
        sum(int(rows[part][1]) for part in parts)
        == int(rows["all"][1])
        == len(load_file(path / "model.safetensors")) - 1
    )
    assert "one chunk of finite actions" in " ".join(out.split())


def test_a_fault_is_one_line_after_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, robot = write_openpi(tmp_path / "checkpoint", "pi05"), write_settings(tmp_path / "robot.yaml")
    tensors = load_file(path / "model.safetensors")
    del tensors["time_mlp_in.weight"]
    save_file({**tensors, "strange.bias": np.zeros(2)}, path / "model.safetensors")
    code, out, err = call(capsys, monkeypatch, "import", path, "--settings", robot, "--out", tmp_path / "out")
    assert code == 2
    assert err.count("\n") == 1
    assert "1 missing: time_mlp_in.weight; 1 unknown: strange.bias" in err
    assert [line.split()[-1] for line in out.splitlines() if line.startswith(("projections", "all"))] == ["1", "1"]
    assert next(line for line in out.splitlines() if line.startswith("none of these")).split()[-2] == "1"


@pytest.mark.parametrize(("family", "model"), [("pi0", PI0), ("pi05", PI05)])
def test_the_published_sizes_are_inferred_and_counted(family: str, model: Pi0Config) -> None:
    shapes = published(family)
    del shapes[EMBEDDING]
    entries = {key: Entry("BF16", shape, 0, 0) for key, shape in shapes.items()}
    plan = published_to_ours(entries)
    ours = {name: shapes[key] for key, name in plan.names.items()}
    assert infer_config(ours, plan.depths, plan.pi05, horizon=50, steps=10, heads=Heads()) == model
    counts = {row.part: row.parameters for row in account(entries, plan)}
    assert counts == {
        "vision": 412_442_352,
        "projector": 2_361_344,
        "embedding": 526_647_296,
        "language layers": 1_981_884_416,
        "action expert": 311_464_960 if family == "pi0" else 427_932_672,
        "projections": 3_248_160 if family == "pi0" else 2_165_792,
        "all": 3_238_048_528 if family == "pi0" else 3_353_433_872,
    }


def test_what_is_too_large_to_load_is_covered_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "LARGE", 0)
    path = write_openpi(tmp_path / "checkpoint", "pi0")
    settings = load_settings(None, write_settings(tmp_path / "robot.yaml"), Flags())
    imported = import_checkpoint(read_checkpoint(path), tmp_path / "out", settings, Extras())
    assert imported.certified == "digests, coverage"
    config = dict(imported.bundle.manifest.model["config"])
    config["expert"] = {**config["expert"], "mlp": 48}
    other = replace(imported.bundle.manifest, model={"family": "pi0", "config": config})
    with pytest.raises(BundleError, match=r"expert\.0\.mlp\.down_proj\.weight: expected \(24, 48\), got \(24, 40\)"):
        certify.check_coverage(replace(imported.bundle, manifest=other))


def test_json_has_the_same_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, robot = write_lerobot(tmp_path / "checkpoint", "pi05"), write_settings(tmp_path / "robot.yaml", "")
    arguments = ["import", path, "--settings", robot, "--store", tmp_path / "store", "--json"]
    code, out, _ = call(capsys, monkeypatch, *arguments)
    assert code == 0
    facts = json.loads(out)
    assert (facts["family"], facts["layout"], facts["certified"]) == ("pi05", "lerobot", "digests, loaded")
    assert facts["coverage"][-1]["known_dead"] == 2
    assert Store(tmp_path / "store").live() == facts["version"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either --preset or --settings"),
        (["--preset", "so101", "--settings", "x.yaml"], "give either --preset or --settings"),
        (["--preset", "so102"], "--preset: expected one of aloha, droid, libero, so101, got 'so102'"),
        (["--settings", "x.yaml"], "x.yaml: cannot be read"),
        (["--preset", "so101", "--prompt", "poem"], "--prompt: expected one of"),
        (["--preset", "so101", "--normalisation", "none"], "--normalisation: expected one of mean_std, quantile"),
        (["--preset", "so101", "--relative", "knee"], "--relative: expected names of joints, all or none, got 'knee'"),
        (["--preset", "so101", "--slot", "base"], "--slot: expected SLOT=CAMERA or SLOT=none, got 'base'"),
        (["--preset", "so101", "--camera", "front=640"], "--camera: expected NAME=HEIGHTxWIDTH in pixels"),
    ],
)
def test_a_wrong_flag_is_named(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_openpi(tmp_path / "checkpoint", "pi0")
    code, _, err = call(capsys, monkeypatch, "import", path, "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("joints: {a: {unit: deg, low: 0, high: 5}}", "rate_hz: missing"),
        ("rate_hz: 10\njoints: {}", "expected at least one joint"),
        ("rate_hz: 10\njoints: {a: {unit: deg, low: 5, high: 5}}", "joints.a.high: expected a number above 5"),
        ("rate_hz: 10\njoints: {a: {unit: deg, low: 0, high: 5, action: no way}}", "joints.a.action: expected true or"),
        (
            "rate_hz: 10\njoints: {a: {unit: m, low: 0, high: 5, action: false}, b: {unit: m, low: 0, high: 5}}",
            "those without an action come last",
        ),
        ("rate_hz: 10\nrelative: [b]\njoints: {a: {unit: deg, low: 0, high: 5}}", "relative: expected names of joints"),
        ("rate_hz: 10\nhorizont: 5\njoints: {a: {unit: deg, low: 0, high: 5}}", "unknown horizont"),
        ("rate_hz: 10\npi0: {horizon: 0}\njoints: {a: {unit: deg, low: 0, high: 5}}", "pi0.horizon: expected a whole"),
    ],
)
def test_a_wrong_settings_file_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "robot.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"robot\.yaml") as caught:
        read_settings(tmp_path / "robot.yaml")
    assert said in str(caught.value)


def test_flags_stand_over_a_preset_and_each_family_has_its_own_values() -> None:
    flags = Flags(horizon=7, rate_hz=12.5, relative="all", slots=("right_wrist_0_rgb=wrist", "left_wrist_0_rgb=none"))
    settings = load_settings("so101", None, replace(flags, cameras=("wrist=240x320",)))
    robot = resolve(settings, Stated("the weights"), True)
    assert (robot.horizon, robot.rate_hz, robot.relative) == (7, 12.5, (True,) * 6)
    assert [(c.name, c.height, c.width) for c in robot.cameras] == [("front", 480, 640), ("wrist", 240, 320)]
    assert robot.slots == {"base_0_rgb": "front", "left_wrist_0_rgb": None, "right_wrist_0_rgb": "wrist"}


def test_every_preset_is_read_without_being_called_one() -> None:
    for name in presets():
        settings: Settings = read_settings(PRESETS / f"{name}.yaml")
        assert settings.origin.endswith(f"{name}.yaml")


def test_an_imported_policy_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    robot = write_settings(tmp_path / "robot.yaml", SLOTS)
    path = write_openpi(tmp_path / "checkpoint", "pi05")
    store, endpoint = tmp_path / "store", f"ipc://{tmp_path}/s"
    code, _, err = call(capsys, monkeypatch, "import", path, "--settings", robot, "--store", store)
    assert code == 0, err
    version = Store(store).live()
    with Child("server", ["serve", "--store", str(store), "--endpoint", endpoint], tmp_path / "log") as server:
        server.wait_ready()
        with PolicyClient(endpoint) as client:
            chunk = client.infer(blank(Store(store).open(version).manifest.spec), deadline_ms=20_000)
    assert chunk.version == version
    assert chunk.actions.shape == (HORIZON, JOINTS)
    assert np.isfinite(chunk.actions).all()
