"""An exported policy served where torch was never installed: a fresh environment with the wheel and ONNX Runtime.

    hotpolicy export live exported --store policies      # wherever torch is
    python tests/compat/no_torch.py exported [OTHER]     # with OTHER: swapped in, and back

Prints what was installed and how large it is, how long the server takes to its ready line, and what a robot was
answered. The exit code is 1 when torch or onnx came in, or a robot was not answered.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wheels import build_wheel, make_venv, size_mb

STARTS = 3
ASK = """
import json, sys
import numpy as np
from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.messages import Observation

endpoint, control, other = sys.argv[1:]
with PolicyClient(endpoint) as robot, ControlClient(control) as operator:
    spec = robot.hello().spec
    images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in spec.cameras}
    state = np.array([(j.low + j.high) / 2 for j in spec.joints], np.float32)
    def ask():
        chunk = robot.infer(Observation(images, state, "touch the red cube"), deadline_ms=10_000)
        assert np.isfinite(chunk.actions).all()
        return chunk
    chunks = [ask()]
    if other:
        operator.swap(other)
        chunks.append(ask())
        operator.rollback()
        chunks.append(ask())
    print(json.dumps([(c.version, c.actions.shape, round(c.timings_ms["infer"], 2)) for c in chunks]))
"""


def start(hotpolicy: Path, arguments: list[str]) -> tuple[subprocess.Popen[str], dict[str, str], float]:
    """The server, its ready line and the seconds until then."""
    began = time.perf_counter()
    server = subprocess.Popen([str(hotpolicy), "serve", *arguments], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    ready = json.loads(server.stdout.readline())
    return server, ready, time.perf_counter() - began


def stop(server: subprocess.Popen[str]) -> None:
    server.terminate()
    server.wait(20)
    assert server.stdout is not None
    server.stdout.close()


def main(exported: str, other: str = "") -> int:
    with tempfile.TemporaryDirectory(prefix="hotpolicy-no-torch-") as folder:
        home = Path(folder)
        python = make_venv(sys.executable, home / "venv", build_wheel(home), "onnx,cli")
        names = subprocess.check_output([python, "-m", "pip", "list", "--format=json"], text=True)
        installed = {package["name"].lower(): package["version"] for package in json.loads(names)}
        unwanted = {"torch", "onnx", "onnxscript", "safetensors"} & installed.keys()
        print(f"{len(installed)} packages, {size_mb(home / 'venv'):.0f} MB on disk, pip among them")
        print(", ".join(f"{name} {version}" for name, version in sorted(installed.items())))
        hotpolicy, store = home / "venv/bin/hotpolicy", ["--store", str(home / "store")]
        arguments = [*store, "--endpoint", "tcp://127.0.0.1:0", "--json"]
        took = []
        for n in range(STARTS):
            server, ready, seconds = start(hotpolicy, [exported, *arguments] if n == 0 else arguments)
            took.append(f"{seconds:.2f}")
            if n < STARTS - 1:
                stop(server)
        print(f"ready after {', '.join(took)} s; the first copied the folder into the store")
        try:
            command = [
                python,
                "-c",
                ASK,
                ready["endpoint"],
                ready["control"],
                str(Path(other).resolve()) if other else "",
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            maps = Path(f"/proc/{server.pid}/status").read_text()
        finally:
            stop(server)
        resident = next(line.split(":")[1].strip() for line in maps.splitlines() if line.startswith("VmRSS"))
        print(f"engine {ready['engine']}, resident {resident}; answers: {done.stdout.strip() or done.stderr.strip()}")
        return 1 if unwanted or done.returncode else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
