"""The doctor: each problem is found on a machine made to have it, and comes with what mends it."""

from __future__ import annotations

import json
import sys
import types

import pytest
from calling import call

from hotpolicy.launch.checkup import computer, devices, software
from hotpolicy.launch.profile import ArmProfile
from hotpolicy.launch.profile_file import SHIPPED as PROFILES
from hotpolicy.launch.versions import SHIPPED, open_store
from hotpolicy.robots.arms.so import SO101_FOLLOWER
from hotpolicy.robots.calibration import JointCalibration, write_calibration
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus

CALIBRATION = {row.name: JointCalibration(row.id, 0, 10 * row.id, 1000, 3000) for row in SO101_FOLLOWER.joints}


def only(findings):
    (finding,) = findings
    assert bool(finding.mend) == (finding.level != "ok")
    return finding


# Packages and hardware ------------------------------------------------------------------------------------------------


def test_packages_that_are_missing_are_named_with_the_line_that_installs_them(monkeypatch):
    there = {"torch": "2.13.0", "onnxruntime": "1", "onnxruntime-gpu": "1"}
    monkeypatch.setattr(software, "_version", there.get)
    findings = list(software.look_at_versions())
    server = next(f for f in findings if f.text.startswith("server"))
    assert (server.level, server.mend) == ("warn", "pip install 'hotpolicy[server]'")
    assert "safetensors" in server.text
    assert findings[-1].level == "bad"
    assert "both installed" in findings[-1].text


def torch_with(available, finite=True):
    """As much of torch as the look needs, on a machine with a GPU."""

    class Square:
        def __matmul__(self, other):
            return self

    module = types.ModuleType("torch")
    module.__version__ = "2.13.0+cpu"
    module.randn = lambda *size, device: Square()
    module.isfinite = lambda square: types.SimpleNamespace(all=lambda: finite)
    module.cuda = types.SimpleNamespace(
        is_available=lambda: available, get_device_name=lambda: "Orin", mem_get_info=lambda: (4e9, 8e9)
    )
    return module


def test_a_gpu_that_torch_cannot_use_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "tegra").touch()
    monkeypatch.setitem(sys.modules, "torch", torch_with(available=False))
    found = only(computer.look_at_gpu(tmp_path / "nvidia", tmp_path / "tegra"))
    assert (found.level, "jetson-ai-lab" in found.mend) == ("bad", True)
    assert only(computer.look_at_gpu(tmp_path / "nvidia", tmp_path / "none")).level == "ok"  # no GPU at all


def test_a_gpu_is_tried_and_not_believed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", torch_with(available=True))
    assert only(computer.look_at_gpu()).text == "Orin: a matrix product works, 4.0 of 8.0 GB free"
    monkeypatch.setitem(sys.modules, "torch", torch_with(available=True, finite=False))
    assert only(computer.look_at_gpu()).level == "bad"
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "nvidia").touch()
    assert "no torch" in only(computer.look_at_gpu(tmp_path / "nvidia")).text
    assert list(computer.look_at_gpu(tmp_path / "none", tmp_path / "none")) == []


def test_memory(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 8000000 kB\nMemAvailable: 1000000 kB\n")
    assert only(computer.look_at_memory(file)).level == "warn"
    file.write_text("MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n")
    assert only(computer.look_at_memory(file)).text == "6.0 of 8.0 GB available"
    assert list(computer.look_at_memory(tmp_path / "none")) == []


def test_disk(monkeypatch, tmp_path):
    assert only(computer.look_at_disk(tmp_path / "not" / "yet")).level in ("ok", "warn")
    monkeypatch.setattr(computer.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1e9))
    assert only(computer.look_at_disk(tmp_path)).level == "warn"
    monkeypatch.setattr(computer.os, "access", lambda *how: False)
    assert only(computer.look_at_disk(tmp_path)).mend.startswith("sudo chown")


def test_a_version_that_was_altered_is_found(tmp_path):
    assert "none yet" in only(software.look_at_store(tmp_path / "policies")).text
    store = open_store(tmp_path / "policies")
    version = store.add(SHIPPED / "nano")
    assert only(software.look_at_store(tmp_path / "policies")).text.endswith(f"serves {version}")
    weights = tmp_path / "policies/versions" / version / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    bad = next(f for f in software.look_at_store(tmp_path / "policies") if f.level == "bad")
    assert "digest mismatch" in bad.text
    assert version in bad.mend


# Ports and motors -----------------------------------------------------------------------------------------------------


def test_ports(monkeypatch, tmp_path):
    assert only(devices.look_at_ports(found=[])).level == "warn"
    port = tmp_path / "ttyUSB0"
    port.touch()
    timer = tmp_path / "sys/ttyUSB0/latency_timer"
    timer.parent.mkdir(parents=True)
    timer.write_text("16\n")
    slow = only(devices.look_at_ports(tmp_path / "sys", [str(port)]))
    assert (slow.level, slow.text.endswith("latency timer 16 ms")) == ("warn", True)
    assert slow.mend == f"echo 1 | sudo tee {timer}"
    timer.write_text("1\n")
    assert only(devices.look_at_ports(tmp_path / "sys", [str(port)])).level == "ok"
    monkeypatch.setattr(devices.os, "access", lambda *how: False)
    assert "dialout" in only(devices.look_at_ports(tmp_path / "sys", [str(port)])).mend


def test_modem_manager(tmp_path):
    for number, name in ((1, "systemd"), (2, "ModemManager")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "comm").write_text(f"{name}\n")
    assert "disable --now ModemManager" in only(devices.look_for_modem_manager(tmp_path)).mend
    (tmp_path / "2/comm").unlink()
    assert list(devices.look_for_modem_manager(tmp_path)) == []


def test_motors(tmp_path):
    file = tmp_path / "blue.json"
    write_calibration(file, CALIBRATION)
    virtual = VirtualBus.from_calibration(CALIBRATION)

    def look(port=str(tmp_path / "arm")):
        return only(devices.look_at_motors(ArmProfile("so101_follower", port, 1_000_000, file)))

    with serve(virtual, VirtualPort(tmp_path / "arm")) as port:
        assert look().text.startswith(f"{port.path}: 6 servos")
        virtual.servos[2].errors = 0x20
        found = look()
        assert (found.level, found.text) == ("bad", "elbow_flex.pos: overload")
        virtual.servos[2].errors = 0
        write_calibration(file, {**CALIBRATION, "gripper": JointCalibration(6, 0, 61, 1000, 3000)})
        assert look().mend.startswith("hotpolicy calibrate")
        virtual.inject("silent", id=4)
        assert "setup-motors" in look().mend
    assert "ls /dev/serial/by-id" in look(str(tmp_path / "none")).mend


# Cameras --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path):
    import cv2
    import numpy as np

    file = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (64, 48))
    for number in range(10):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
    writer.release()
    return str(file)


def test_cameras_are_counted(film):
    fine, slow, size, gone = devices.look_at_cameras(
        {"a": (film, 48, 64), "b": (film, 48, 64), "c": (film, 224, 224), "d": ("/dev/video63", 48, 64)}, 20.0
    )
    assert (fine.level, fine.text.startswith(f"a ({film}): 48x64, ")) == ("ok", True)
    assert slow.level == "ok"
    assert only([size]).mend.endswith("in the profile")
    assert only([gone]).level == "bad"
    assert only(devices.look_at_cameras({"a": (film, 48, 64)}, 60.0)).level == "warn"


# The verb -------------------------------------------------------------------------------------------------------------


def test_the_verb_says_all_of_it_and_its_exit_code_the_worst(capsys, monkeypatch, tmp_path):
    code, out, _ = call(capsys, monkeypatch, "doctor", "--store", tmp_path / "policies", "--json")
    findings = json.loads(out)
    assert {f["area"] for f in findings} >= {"versions", "disk", "store"}
    assert all(bool(f["mend"]) == (f["level"] != "ok") for f in findings)
    assert code == {"ok": 0, "warn": 1, "bad": 2}[max((f["level"] for f in findings), key=["ok", "warn", "bad"].index)]
    monkeypatch.setenv("COLUMNS", "200")
    _, table, _ = call(capsys, monkeypatch, "doctor", "--store", tmp_path / "policies")
    assert all(f["mend"] in table for f in findings)  # whole, also where it has [brackets]


def test_the_verb_looks_at_a_robot(capsys, monkeypatch, tmp_path, film):
    write_calibration(tmp_path / "blue.json", CALIBRATION)
    with serve(VirtualBus.from_calibration(CALIBRATION), VirtualPort(tmp_path / "arm")) as port:
        text = (PROFILES / "so101.yaml").read_text()
        text = text.replace("/dev/serial/by-id/usb-1a86_USB_Single_Serial-if00", port.path)
        text = text.replace("my_so101", "blue.json").replace("/dev/v4l/by-id/usb-camera-video-index0", film)
        (tmp_path / "robot.yaml").write_text(text.replace("height: 480, width: 640", "height: 48, width: 64"))
        _, out, _ = call(
            capsys,
            monkeypatch,
            "doctor",
            "--robot",
            tmp_path / "robot.yaml",
            "--store",
            tmp_path / "policies",
            "--json",
        )
    levels = {f["area"]: f["level"] for f in json.loads(out)}
    assert levels["motors"] == "ok"
    assert levels["cameras"] in ("ok", "warn")
