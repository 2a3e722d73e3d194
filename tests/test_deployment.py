"""What `hotpolicy deploy` prints: a unit that systemd accepts, rules that parse, container files, boards."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from calling import call
from published_keys import published

from hotpolicy.launch.deployment import FILES, FOLDER, SHIPPED, fill
from hotpolicy.runtime.errors import BundleError, ConfigError
from hotpolicy.runtime.versions.boards import BOARDS
from hotpolicy.runtime.versions.footprint import PROCESS_GB, SYSTEM_GB, Footprint, Need
from hotpolicy.runtime.versions.manifest import TensorInfo

UNIT = (FOLDER / "hotpolicy.service").read_text()
MINE = {"command": sys.executable, "store": "/srv/arm/policies", "endpoint": "tcp://127.0.0.1:5555", "user": "arm"}


def settings(unit: str) -> dict[str, list[str]]:
    """Key -> its values, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_every_file_is_named_and_every_name_a_file() -> None:
    assert {file for file, _ in FILES.values()} == {path.name for path in FOLDER.iterdir()}


def test_the_unit_is_that_of_a_server_that_says_when_it_is_ready() -> None:
    unit = settings(UNIT)
    assert (unit["Type"], unit["NotifyAccess"], unit["Restart"]) == (["notify"], ["main"], ["on-failure"])
    assert int(unit["WatchdogSec"][0]) > 0
    assert int(unit["TimeoutStopSec"][0]) > 5 + 2  # what ServeConfig drains, and what the threads are given
    assert unit["StartLimitBurst"]
    assert unit["StartLimitIntervalSec"]
    hardened = ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "ProtectKernelTunables", "LockPersonality")
    assert all(unit[name] == ["yes"] for name in hardened)
    assert (unit["ProtectSystem"], unit["DevicePolicy"]) == (["strict"], ["closed"])
    assert unit["CapabilityBoundingSet"] == [""]
    for name in ("store", "endpoint", "command"):
        assert SHIPPED[name] in unit["ExecStart"][0]
    assert unit["MemoryMax"] == ["90%"]
    assert "MemoryHigh" not in unit  # it would slow a server down that a robot waits for
    assert unit["StateDirectory"] == unit["RuntimeDirectory"] == unit["User"] == ["hotpolicy"]


def test_the_unit_filled_in() -> None:
    unit = settings(fill(UNIT, MINE))
    assert unit["ExecStart"] == [
        f"{sys.executable} serve --store /srv/arm/policies --endpoint tcp://127.0.0.1:5555 $HOTPOLICY_SERVE"
    ]
    assert (unit["User"], unit["Group"], unit["ReadWritePaths"]) == (["arm"], ["arm"], ["/srv/arm"])
    assert fill(UNIT, SHIPPED) == UNIT


@pytest.mark.parametrize(
    ("name", "value"),
    [("user", "a b"), ("user", ""), ("store", "policies"), ("store", "/a\nExecStartPre=/b"), ("command", "/100%")],
)
def test_what_a_unit_cannot_hold_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: expected a "):
        fill(UNIT, {**MINE, name: value})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", ["unit", "clocks"])
def test_systemd_accepts_it(name: str, tmp_path: Path) -> None:
    file = FILES[name][0]
    text = (
        fill(UNIT, MINE)
        if name == "unit"
        else (FOLDER / file).read_text().replace("/usr/bin/jetson_clocks", "/bin/true")
    )
    (tmp_path / file).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(tmp_path / file)], capture_output=True, text=True)
    assert (done.returncode, [line for line in done.stderr.splitlines() if file in line]) == (0, [])


def test_udev_rules_are_rules() -> None:
    pair = r'[A-Z]+(\{[a-zA-Z_]+\})?(==|!=|\+=|:=|=)"[^"]*"'
    rules = [line for line in (FOLDER / "99-hotpolicy.rules").read_text().splitlines() if line and line[0] != "#"]
    assert len(rules) >= 6
    for rule in rules:
        assert re.fullmatch(rf"{pair}(, {pair})*", rule), rule
    names = [name for rule in rules for name in re.findall(r'SYMLINK\+="([^"]*)"', rule)]
    assert names
    assert all(re.fullmatch(r"hotpolicy/[a-z]+-\$(attr|env)\{\w+\}", name) for name in names)


@pytest.mark.parametrize("name", ["jetpack6", "jetpack7"])
def test_container_files_run_a_server_without_privileges_beyond_its_own(name: str) -> None:
    text = (FOLDER / FILES[name][0]).read_text()
    assert "Never built or run by us on a Jetson" in text
    entry = next(line for line in text.splitlines() if line.startswith("ENTRYPOINT "))
    assert json.loads(entry.removeprefix("ENTRYPOINT "))[:2] == ["hotpolicy", "serve"]
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert SHIPPED["endpoint"] in entry


def test_printed_by_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (file, _) in FILES.items():
        assert call(capsys, monkeypatch, "deploy", "show", name) == (0, (FOLDER / file).read_text(), "")
    assert {row["name"] for row in json.loads(call(capsys, monkeypatch, "deploy", "show", "--json")[1])} == set(FILES)
    code, out, _ = call(capsys, monkeypatch, "deploy", "unit", "--user", "arm", "--command", "/opt/arm/bin/hotpolicy")
    assert (code, settings(out)["User"]) == (0, ["arm"])
    code, _, err = call(capsys, monkeypatch, "deploy", "unit", "--endpoint", "tcp://0.0.0.0:1")
    assert code == 2
    assert err.startswith("hotpolicy: endpoint: expected")
    assert call(capsys, monkeypatch, "deploy", "show", "x")[2].startswith("hotpolicy: name: expected one of unit, env")


def real(family: str) -> Footprint:
    """pi0 as published, in bf16, by our names for its parts; the two heads that nobody uses are left out."""
    from hotpolicy.runtime.model.weights import part

    from_published = {}
    for key, shape in published(family).items():
        if "lm_head" in key:
            continue
        head = "gemma_expert" in key or "paligemma" not in key
        name = f"{'expert.0' if head else 'vision'}.{key}"
        assert (part(name) == "expert.0") == head
        from_published[name] = TensorInfo(shape, "BF16", "0" * 64)
    return Footprint.of_tensors(from_published)


def test_the_real_models_are_counted() -> None:
    """As LeRobot counts what is used of them, and what of that is the expert with its projections."""
    counts = {family: (real(family).parameters, real(family).head_parameters) for family in ("pi0", "pi05")}
    assert counts == {"pi0": (3_238_048_528, 314_713_120), "pi05": (3_353_433_872, 430_098_464)}
    assert real("pi0").bytes == 2 * real("pi0").parameters


def test_what_fits_a_board_is_what_the_sums_say() -> None:
    """By hand, for 6.5 GB of weights with a head of 0.63 GB, that is 0.315 G parameters."""
    need = Need.of(Footprint(3_250_000_000, 315_000_000, 6_500_000_000, 630_000_000))
    assert need.serve == pytest.approx(SYSTEM_GB + PROCESS_GB + 6.5)
    assert need.swap_head == pytest.approx(need.serve + 2 * 0.63)
    assert need.swap_all == pytest.approx(need.serve + 2 * 6.5)
    assert need.tune_head == pytest.approx(need.serve + PROCESS_GB + 4 * 3.25 + 20 * 0.315)
    fits = {name: [field for field, yes in need.fits(board).items() if yes] for name, board in BOARDS.items()}
    assert fits["orin-nano-8"] == []
    assert fits["orin-nx-16"] == ["serve", "swap_head"]
    assert fits["agx-orin-64"] == fits["agx-thor-128"] == ["serve", "swap_head", "swap_all", "tune_head"]


def test_precision_changes_bytes_and_nothing_else() -> None:
    tensors = {"vision.a": TensorInfo((10, 10), "F32", "0" * 64), "expert.0.b": TensorInfo((5,), "F32", "0" * 64)}
    assert Footprint.of_tensors(tensors) == Footprint(105, 5, 420, 20)
    assert Footprint.of_tensors(tensors, "int8") == Footprint(105, 5, 105, 5)
    with pytest.raises(ConfigError, match="precision: expected one of fp32, bf16, fp16, int8, got 'fp4'"):
        Footprint.of_tensors(tensors, "fp4")
    with pytest.raises(BundleError, match="dtype I4"):
        Footprint.of_tensors({"vision.a": TensorInfo((1,), "I4", "0" * 64)})


def test_boards_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = json.loads(call(capsys, monkeypatch, "deploy", "boards", "--json")[1])
    assert {row["board"] for row in listed} == set(BOARDS)
    assert all(row["source"] for row in listed if "ms" in row)
    assert all(f"jetpack{release}" in FILES for row in listed for release in row["jetpacks"])
    assert all(row["memory_source"] and "nvpmodel -m" in row["power"] for row in listed)
    assert "none of them is hotpolicy's" in call(capsys, monkeypatch, "deploy", "boards")[1]
    _, version, _ = call(capsys, monkeypatch, "add", "nano", "--store", tmp_path)
    by_name = call(capsys, monkeypatch, "deploy", "boards", "nano", "--json")[1]
    assert by_name == call(capsys, monkeypatch, "deploy", "boards", version.strip(), "--store", tmp_path, "--json")[1]
    assert json.loads(by_name)["bytes"] == 4 * json.loads(by_name)["parameters"]
    code, out, _ = call(capsys, monkeypatch, "deploy", "boards", "nano", "--precision", "bf16")
    assert code == 0
    assert "An estimate, never run on a board" in out
