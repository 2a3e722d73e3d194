"""Options that several verbs share, so that they are spelled, explained and defaulted once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ENDPOINT = "tcp://127.0.0.1:5555"
CONTROL = "tcp://127.0.0.1:5556"
STORE = Path("policies")
ROBOT = "virtual_so101"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Control = Annotated[
    str, typer.Option(envvar="HOTPOLICY_CONTROL", help="The server's control socket, tcp://HOST:PORT or ipc://PATH.")
]
Endpoint = Annotated[
    str, typer.Option(envvar="HOTPOLICY_ENDPOINT", help="The server's data socket, tcp://HOST:PORT or ipc://PATH.")
]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key",
        envvar="HOTPOLICY_KEY",
        help="This client's secret key, NAME.key_secret, for a server that asks for one.",
    ),
]
ServerKey = Annotated[
    Path | None, typer.Option("--server-key", envvar="HOTPOLICY_SERVER_KEY", help="That server's public key.")
]
StoreFolder = Annotated[
    Path, typer.Option("--store", envvar="HOTPOLICY_STORE", help="Folder that keeps the policy versions.")
]
Robot = Annotated[
    str,
    typer.Option(help="Robot profile: a name (virtual_so101, so101, or yours in ~/.config/hotpolicy) or a YAML file."),
]
Task = Annotated[str, typer.Option(help='The instruction, e.g. "touch the red cube".')]
Episodes = Annotated[int, typer.Option(min=1, help="Episodes to keep.")]
Seed = Annotated[int, typer.Option(help="Scene of the first episode in a simulation; the next ones count up.")]
LongestS = Annotated[
    float | None,
    typer.Option(min=0.1, help="Longest episode, s. Default: the task's own limit in a simulation, else 30."),
]
Release = Annotated[
    bool, typer.Option("--release", help="Switch the torque off at the end: the arm falls. Otherwise it keeps holding.")
]
