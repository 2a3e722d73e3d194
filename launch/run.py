"""`hotpolicy run`: a robot does a task, with a policy server thinking for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from hotpolicy.launch.driving import drive, policy_source, stop_key, taking_over
from hotpolicy.launch.options import ROBOT, AsJson, Episodes, Key, LongestS, Release, Robot, Seed, ServerKey, Task
from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotpolicy.runtime.chunks import Chunking
    from hotpolicy.runtime.messages import Boundary, RobotSpec


def run(
    task: Task,
    robot: Robot = ROBOT,
    episodes: Episodes = 1,
    seed: Seed = 0,
    longest_s: LongestS = None,
    replan: Annotated[int, typer.Option(help="Actions of a chunk that are carried out before the next is used.")] = 4,
    deadline_ms: Annotated[float, typer.Option(help="An answer later than this is of no use, ms.")] = 500.0,
    chunking: Annotated[
        str | None,
        typer.Option(
            help="From one chunk to the next: sync (execute, then hold while the next is computed), async (ask ahead, "
            "blend), rtc (ask ahead, and have the next chunk carry on from what is being executed; where the server "
            "cannot, as async). Default: the profile's, else rtc. In lock-step the loop waits for each answer instead."
        ),
    ] = None,
    boundary: Annotated[
        str, typer.Option(help="When this robot moves to a swapped version: at the next chunk, or episode.")
    ] = "chunk",
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="The server's data socket; given again, one that is asked while those before it give no answer. "
            "Default: the profile's."
        ),
    ] = None,
    key: Key = None,
    server_key: ServerKey = None,
    jpeg: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Quality to send pictures with, over a slow link. Default: as they are."),
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Also record the episodes into this dataset folder.")] = None,
    teleop: Annotated[
        str | None,
        typer.Option(
            help="Who may take over from the policy, correct it and hand back: keyboard, gamepad, leader, a plug-in."
        ),
    ] = None,
    release: Release = False,
    as_json: AsJson = False,
) -> None:
    """Let the served policy do a task: fixed rate, within the limits, holding whenever no fresh action is there."""
    from hotpolicy.launch.keys import client_keys
    from hotpolicy.launch.profile_file import load_profile
    from hotpolicy.launch.rig import Rig
    from hotpolicy.runtime.client import PolicyClient

    if boundary not in ("chunk", "episode"):
        raise ConfigError(f"boundary: expected chunk or episode, got {boundary!r}")
    way = _chunking(chunking)
    profile, at = load_profile(robot), _boundary(boundary)
    known = client_keys(key, server_key, profile)
    servers, timeout_s = endpoint or profile.endpoints, deadline_ms / 1000
    with PolicyClient(servers, timeout_s=timeout_s, boundary=at, keys=known, jpeg=jpeg) as client:
        require_fit(client.hello().spec, profile.spec)
        with Rig.open(profile) as rig:
            source = policy_source(rig, client, replan, way)
            with taking_over(rig, source, teleop) as source, stop_key(rig, teleop):
                drive(rig, task, source, episodes, seed, longest_s, record=record, release=release, as_json=as_json)


def require_fit(policy: RobotSpec, robot: RobotSpec) -> None:
    """Raises ConfigError naming the first thing the policy and the robot do not agree on."""
    pairs: list[tuple[str, object, object]] = [
        ("joints", [(j.name, j.unit) for j in policy.joints], [(j.name, j.unit) for j in robot.joints]),
        (
            "cameras",
            sorted((c.name, c.height, c.width) for c in policy.cameras),
            sorted((c.name, c.height, c.width) for c in robot.cameras),
        ),
        ("rate_hz", policy.rate_hz, robot.rate_hz),
    ]
    for field, expected, got in pairs:
        if expected != got:
            raise ConfigError(f"{field}: the served policy expects {expected}, this robot has {got}")


def _chunking(name: str | None) -> Chunking | None:
    from hotpolicy.runtime.chunks import Chunking

    if name is not None and name not in get_args(Chunking):
        raise ConfigError(f"chunking: expected one of {', '.join(get_args(Chunking))}, got {name!r}")
    return cast("Chunking | None", name)


def _boundary(name: str) -> Boundary:
    return "episode" if name == "episode" else "chunk"
