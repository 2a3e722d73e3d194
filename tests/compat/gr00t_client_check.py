"""Does a published GR00T client, unmodified, work on our server?

`inspect-robots-unitree-g1` drives a Unitree G1 from a GR00T server. It packs with msgpack_numpy itself (dialect B,
nested envelope) and has its own names for the robot's parts, which a key map turns into ours:

    python -m venv /tmp/g1
    /tmp/g1/bin/pip install inspect-robots-unitree-g1==0.1.1 pyzmq msgpack msgpack-numpy==0.4.8
    PYTHONPATH=.types python tests/compat/gr00t_client_check.py /tmp/g1

The second half of this file runs in that environment and knows nothing of us.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = {"left_arm": 7, "right_arm": 7, "left_hand": 7, "right_hand": 7, "left_leg": 6, "right_leg": 6, "waist": 3}
STEPS = 200


def check(python: Path) -> None:
    """Serve an echo policy of that robot and swap it until the client has finished."""
    from hotpolicy.runtime.client import ControlClient
    from hotpolicy.runtime.config import ServeConfig
    from hotpolicy.runtime.engine.echo_engine import seal_echo
    from hotpolicy.runtime.fronts import keymap_file
    from hotpolicy.runtime.fronts.settings import Gr00tSettings
    from hotpolicy.runtime.messages import CameraSpec, Joint, RobotSpec
    from hotpolicy.runtime.server import PolicyServer
    from hotpolicy.runtime.serving.control import Control
    from hotpolicy.runtime.slot import Slot
    from hotpolicy.runtime.store import Store
    from hotpolicy.runtime.versions.golden import Golden
    from hotpolicy.runtime.versions.loader import load_with

    joints = {part: [f"{part}_{n}.pos" for n in range(width)] for part, width in PARTS.items()}
    spec = RobotSpec(
        joints=tuple(Joint(name, "rad", -3.2, 3.2) for names in joints.values() for name in names),
        cameras=(CameraSpec("head", 48, 64),),
        rate_hz=10.0,
    )
    names = {
        "front": "gr00t",
        "images": {"video.ego_view": "head"},
        "state": {f"state.{part}": names for part, names in joints.items()},
        "actions": {f"action.{part}": joints[part] for part in ("left_arm", "right_arm", "left_hand", "right_hand")},
        "task": ["annotation.human.task_description"],
    }
    with tempfile.TemporaryDirectory(prefix="hp") as folder:
        Path(f"{folder}/g1.json").write_text(json.dumps(names))
        store = Store(f"{folder}/store")
        base = seal_echo(f"{folder}/made", 0.25, delay_ms=5, spec=spec, golden=Golden.blank(spec, 8, 2))
        delta = seal_echo(f"{folder}/made", 0.5, parent=base)
        versions = [store.add(bundle.folder) for bundle in (base, delta)]
        slot = Slot(store, load_with("echo"))
        settings = Gr00tSettings("tcp://127.0.0.1:0", keymap=keymap_file.load(f"{folder}/g1.json"))
        made = PolicyServer(ServeConfig(endpoint=f"ipc://{folder}/robots", gr00t=settings), slot, Control(slot, store))
        with made as server, ControlClient(server.control_endpoint) as control:
            server.wait_ready()
            command = [str(python), __file__, "--client", server.gr00t_endpoint.rpartition(":")[2]]
            swaps = 0
            with subprocess.Popen(command) as client:
                while client.poll() is None:
                    swaps += 1
                    control.swap(versions[swaps % 2])
                    time.sleep(0.02)
            if client.returncode:
                raise SystemExit(f"the client failed with {client.returncode}")
            print(f"server: {swaps} swaps meanwhile, {server.stats()['fronts']['gr00t']}")


# From here on in the client's environment.


def client(port: int) -> None:
    import numpy as np
    from inspect_robots.types import Observation
    from inspect_robots_unitree_g1.policy import Gr00tPolicy

    state = {"joint_pos": np.zeros(16), "left_leg": np.zeros(6), "right_leg": np.zeros(6), "waist": np.zeros(3)}
    image = np.zeros((48, 64, 3), np.uint8)
    policy = Gr00tPolicy(host="127.0.0.1", port=port)
    levels = set()
    for _ in range(STEPS):
        chunk = policy.act(Observation({"head_cam": image}, state, "fold the towel"))
        arms = np.array([action.data for action in chunk.actions])[:, [*range(7), *range(8, 15)]]
        if arms.shape != (8, 14) or np.ptp(arms):
            sys.exit(f"FAILED: expected 8 equal actions, got {arms}")
        levels.add(float(arms[0, 0]))
    if levels != {0.25, 0.5}:
        sys.exit(f"FAILED: expected both versions to have answered, got {levels}")
    print(f"ok: {STEPS} chunks, each of one version, both versions seen")
    try:
        policy.act(Observation({"head_cam": image[:8]}, state, "fold the towel"))
    except RuntimeError as error:
        print("ok: a picture of the wrong size:", error)
    else:
        sys.exit("FAILED: a picture of the wrong size was taken")
    policy.act(Observation({"head_cam": image}, state, "fold the towel"))
    print("ok: the next request works")


if __name__ == "__main__":
    if sys.argv[1] == "--client":
        client(int(sys.argv[2]))
    else:
        check(Path(sys.argv[1]) / "bin/python")
