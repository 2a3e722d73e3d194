"""Does openpi's published client, unmodified, work on our server?

It wants numpy below 2, so it has an environment of its own. This makes one where there is none (from PyPI, 130 MB),
runs a policy server that swaps versions all the while, and lets the client at it:

    python tests/compat/openpi_client_check.py [FOLDER OF THE ENVIRONMENT]

`make test` does the same with .venv/openpi. The second half of this file runs in that environment and knows nothing of
us.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("openpi-client==0.1.2", "typing_extensions==4.16.0", "numpy==1.26.4")  # the second is missing in its list
STEPS = 200


def environment(folder: Path) -> Path:
    """The interpreter of an environment with openpi's client."""
    python = folder / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    have = subprocess.run(
        [str(python), "-c", "import openpi_client, typing_extensions"], capture_output=True, check=False
    )
    if have.returncode:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def check(python: Path) -> None:
    """Serve an echo policy, whose actions say which version made them; swap it until the client has finished."""
    from hotpolicy.runtime.client import ControlClient
    from hotpolicy.runtime.config import ServeConfig
    from hotpolicy.runtime.engine.echo_engine import SPEC, seal_echo
    from hotpolicy.runtime.fronts.settings import OpenpiSettings
    from hotpolicy.runtime.server import PolicyServer
    from hotpolicy.runtime.serving.control import Control
    from hotpolicy.runtime.slot import Slot
    from hotpolicy.runtime.store import Store
    from hotpolicy.runtime.versions.golden import Golden
    from hotpolicy.runtime.versions.loader import load_with

    with tempfile.TemporaryDirectory(prefix="hp") as folder:
        store = Store(f"{folder}/store")
        base = seal_echo(f"{folder}/made", 0, delay_ms=20, golden=Golden.blank(SPEC, 8, 2))
        delta = seal_echo(f"{folder}/made", 1, parent=base)
        levels = {store.add(bundle.folder): level for level, bundle in enumerate((base, delta))}
        slot = Slot(store, load_with("echo"))
        settings = OpenpiSettings(port=0, key="secret")
        config = ServeConfig(endpoint=f"ipc://{folder}/robots", openpi=settings)
        with (
            PolicyServer(config, slot, Control(slot, store)) as server,
            ControlClient(server.control_endpoint) as control,
        ):
            server.wait_ready()
            command = [str(python), __file__, "--client", str(server.openpi_port), json.dumps(levels)]
            swaps = 0
            with subprocess.Popen(command) as client:
                while client.poll() is None:
                    control.swap(list(levels)[(swaps + 1) % 2])
                    swaps += 1
                    time.sleep(0.02)
            if client.returncode:
                raise SystemExit(f"the client failed with {client.returncode}")
            counts = server.stats()["fronts"]["openpi"]
            print(f"server: {swaps} swaps meanwhile, {counts}")
            if swaps < 5 or counts["answered"] < 3 * STEPS:
                raise SystemExit("expected more swaps and answers")


# From here on in openpi's environment.


def client(port: int, levels: dict[str, int]) -> None:
    import importlib.metadata

    import numpy as np
    from openpi_client import image_tools
    from openpi_client.action_chunk_broker import ActionChunkBroker
    from openpi_client.runtime.agents.policy_agent import PolicyAgent
    from openpi_client.runtime.environment import Environment
    from openpi_client.runtime.runtime import Runtime
    from openpi_client.websocket_client_policy import WebsocketClientPolicy
    from websockets.exceptions import ConnectionClosedError, InvalidStatus

    print("openpi-client", importlib.metadata.version("openpi-client"), "numpy", np.__version__)

    def connected() -> WebsocketClientPolicy:
        return WebsocketClientPolicy("127.0.0.1", port, api_key="secret")

    image = image_tools.resize_with_pad(np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8), 64, 64)
    observation = {"observation/front": image, "observation/state": np.zeros(6), "prompt": "lift the cube"}
    for name, problem in (("none", None), ("another", "public")):
        with expected(InvalidStatus, f"a client with {name} key"):
            WebsocketClientPolicy("127.0.0.1", port, api_key=problem)

    policy = connected()
    metadata = policy.get_server_metadata()
    require(metadata["version"] in levels, "metadata names a version")
    require((metadata["horizon"], metadata["cameras"], metadata["rate_hz"]) == (8, ["front"], 10.0), "metadata")

    seen = set()
    for _ in range(STEPS):
        reply = policy.infer(observation)
        actions = reply["actions"]
        require((actions.shape, actions.dtype) == ((8, 6), np.float32), "actions (8, 6) float32", quiet=True)
        require(bool((actions == levels[reply["version"]]).all()), "a reply is of the version it names", quiet=True)
        require(isinstance(reply["server_timing"]["infer_ms"], float), "server_timing.infer_ms", quiet=True)
        seen.add(reply["version"])
    require(seen == set(levels), f"{STEPS} replies by {len(seen)} versions, each of the one it names")
    require(reply["server_timing"]["prev_total_ms"] >= 20, "server_timing.prev_total_ms")

    broker = ActionChunkBroker(connected(), metadata["horizon"])
    steps = [broker.infer(observation)["actions"] for _ in range(3 * 8 + 1)]
    require(all(step.shape == (6,) for step in steps), "ActionChunkBroker: one action per step")

    class Robot(Environment):
        applied = 0

        def reset(self) -> None: ...

        def is_episode_complete(self) -> bool:
            return self.applied >= 40

        def get_observation(self) -> dict:
            return observation

        def apply_action(self, action: dict) -> None:
            require(action["actions"].shape == (6,), "an action of the runtime", quiet=True)
            self.applied += 1

    robot = Robot()
    Runtime(robot, PolicyAgent(ActionChunkBroker(connected(), 8)), [], num_episodes=1).run()
    require(robot.applied == 40, "Runtime: an episode of 40 steps")

    failed: list[str] = []

    def ask() -> None:
        mine = connected()
        for _ in range(STEPS):
            got = mine.infer(observation)
            if not (got["actions"] == levels[got["version"]]).all():
                failed.append(got["version"])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        began = time.monotonic()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            require((answer.status, answer.read()) == (200, b"OK\n"), "healthz", quiet=True)
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.05)
    require(not failed, f"two clients at once; health answered meanwhile, in {1000 * slowest:.0f} ms at most")

    with expected(RuntimeError, "an observation without a picture", "Error in inference server:\nobservation/front: "):
        policy.infer({"observation/state": np.zeros(6), "prompt": "lift"})
    with expected(ConnectionClosedError, "the connection after an error"):
        policy.infer(observation)
    require(connected().infer(observation)["actions"].shape == (8, 6), "a new connection works")


@contextmanager
def expected(kind: type[Exception], what: str, begins: str = "") -> Iterator[None]:
    try:
        yield
    except kind as error:
        told = str(error)
        require(told.startswith(begins), f"{what}: {kind.__name__}: {told.splitlines()[-1]}")
        return
    require(False, f"{what}: expected {kind.__name__}")


def require(right: bool, what: str, quiet: bool = False) -> None:
    if not right:
        sys.exit(f"FAILED: {what}")
    if not quiet:
        print("ok:", what, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(int(sys.argv[2]), json.loads(sys.argv[3]))
    elif sys.argv[1:2] == ["--install"]:
        environment(Path(sys.argv[2]))
    else:
        check(environment(Path(sys.argv[1] if len(sys.argv) > 1 else ".venv/openpi")))
