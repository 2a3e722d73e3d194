"""`hotpolicy deploy unit | show | boards`: what a robot's computer needs to come up by itself, and what fits on it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotpolicy.launch import console
from hotpolicy.launch.options import STORE, AsJson, StoreFolder
from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotpolicy.runtime.versions.boards import Board
    from hotpolicy.runtime.versions.footprint import Footprint

FOLDER = Path(__file__).parent / "deploy"
# What is printed -> file, where it goes.
FILES = {
    "unit": ("hotpolicy.service", "/etc/systemd/system/hotpolicy.service"),
    "env": ("hotpolicy.env", "/etc/hotpolicy/hotpolicy.env"),
    "sysusers": ("hotpolicy.sysusers", "/etc/sysusers.d/hotpolicy.conf"),
    "clocks": ("hotpolicy-clocks.service", "/etc/systemd/system/hotpolicy-clocks.service"),
    "udev": ("99-hotpolicy.rules", "/etc/udev/rules.d/99-hotpolicy.rules"),
    "jetpack6": ("Containerfile.jetpack6", "a folder with dist/hotpolicy-*.whl"),
    "jetpack7": ("Containerfile.jetpack7", "a folder with dist/hotpolicy-*.whl"),
}
# As the unit is shipped; `fill` puts others in their places.
SHIPPED = {
    "command": "/opt/hotpolicy/bin/hotpolicy",
    "store": "/var/lib/hotpolicy/policies",
    "endpoint": "ipc:///run/hotpolicy/policy",
    "user": "hotpolicy",
}

deploy = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Print a systemd unit, udev rules and container files; list boards and what fits on them.",
)


@deploy.command()
def unit(
    store: Annotated[
        Path, typer.Option(help="Folder of the policy versions. Below /home it could not be read.")
    ] = Path(SHIPPED["store"]),
    user: Annotated[str, typer.Option(help="Who runs it; `show sysusers` makes the default one.")] = SHIPPED["user"],
    endpoint: Annotated[str, typer.Option(help="Data socket, ipc or loopback tcp.")] = SHIPPED["endpoint"],
    command: Annotated[
        Path | None, typer.Option(help="The hotpolicy to run. Default: the one that prints this.")
    ] = None,
) -> None:
    """Print the systemd unit of a policy server, for `sudo tee /etc/systemd/system/hotpolicy.service`."""
    from hotpolicy.runtime import endpoint as endpoints

    given = {"store": str(store), "user": user, "endpoint": endpoints.check("endpoint", endpoint)}
    typer.echo(fill(_shipped("unit"), {**given, "command": str(command or _this_command())}), nl=False)


@deploy.command()
def show(
    name: Annotated[str | None, typer.Argument(help=f"Which: {', '.join(FILES)}. Default: the list of them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print one of the files as it is shipped, or list them with where they go."""
    if name is None:
        rows = [{"name": name, "file": file, "goes_to": goes_to} for name, (file, goes_to) in FILES.items()]
        console.show(rows, ("name", "file", "goes_to"), as_json)
        return
    typer.echo(_shipped(name), nl=False)


@deploy.command()
def boards(
    policy: Annotated[
        str | None,
        typer.Argument(
            help="A folder (exported or sealed), or a version in the store. Default: list what is published."
        ),
    ] = None,
    store: StoreFolder = STORE,
    precision: Annotated[
        str | None, typer.Option(help="Count weights in fp32, bf16, fp16 or int8. Default: as they are stored.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List robot computers: with a policy, whether it fits (an estimate, never run on one); without, their figures."""
    from hotpolicy.runtime.versions.boards import BOARDS
    from hotpolicy.runtime.versions.footprint import PROCESS_GB, SYSTEM_GB, Need

    if policy is None:
        rows = [
            {**_facts(board), **(asdict(found) if found else {"model": "none found"})}
            for board in BOARDS.values()
            for found in board.published or [None]
        ]
        console.show(rows, ("board", "memory_gb", "power", "model", "ms", "how", "source"), as_json)
        if not as_json:
            typer.echo(
                "Other programs, as their authors published them; none of them is hotpolicy's, none was measured here."
            )
        return
    footprint = measure(policy, store, precision)
    need = Need.of(footprint)
    needs = {name: round(getattr(need, name), 1) for name in ("serve", "swap_head", "swap_all", "tune_head")}
    rows = [{"board": board.name, "memory_gb": board.memory_gb, **need.fits(board)} for board in BOARDS.values()]
    if as_json:
        facts = {"parameters": footprint.parameters, "head_parameters": footprint.head_parameters}
        console.show_one({**facts, "bytes": footprint.bytes, "need_gb": needs, "boards": rows}, as_json)
        return
    words = [{"board": "needs, GB", **needs}, *({**row, **_words(need.fits(BOARDS[row["board"]]))} for row in rows)]
    console.show(words, ("board", "memory_gb", *needs), as_json)
    typer.echo(
        f"{footprint.parameters / 1e6:,.1f} M parameters, {footprint.bytes / 1e9:.2f} GB. An estimate, never run on a "
        f"board: weights are counted, {SYSTEM_GB:g} GB for the system and {PROCESS_GB:g} GB for each process assumed."
    )


def measure(policy: str, store: Path, precision: str | None) -> Footprint:
    """Of a folder, or of a version in a store. Raises ConfigError, BundleError, UnknownVersion."""
    from hotpolicy.launch.versions import open_store, shipped
    from hotpolicy.runtime.bundle import Bundle
    from hotpolicy.runtime.graphs.exported import Exported, is_exported
    from hotpolicy.runtime.versions.footprint import Footprint

    folder = shipped(Path(policy))
    if is_exported(folder):
        if precision is not None:
            raise ConfigError("precision: an exported folder has its own, leave it out")
        return Footprint.of_export(Exported.glance(folder))
    if (folder / "manifest.json").is_file():
        bundle = Bundle.open(folder)
        if bundle.manifest.kind == "delta":
            raise ConfigError(f"policy: {folder} changes {bundle.manifest.parent}: name the version, with --store")
        return Footprint.of_chain([bundle], precision)
    return Footprint.of_chain(open_store(store).chain(policy), precision)


def fill(text: str, wanted: Mapping[str, str]) -> str:
    """The shipped unit with other values. Raises ConfigError for one that a unit file cannot hold."""
    for name, value in wanted.items():
        if not value or value.split() != [value] or "%" in value or not value.isprintable():
            raise ConfigError(f"{name}: expected a text without blanks and percent signs, got {value!r}")
    for name in ("store", "command"):
        if not wanted[name].startswith("/"):
            raise ConfigError(f"{name}: expected a path from the root, got {wanted[name]!r}")
    user, home = wanted["user"], str(Path(wanted["store"]).parent)
    lines = []
    for line in text.splitlines():
        if line.startswith("#"):
            pass
        elif line.startswith("ExecStart="):
            for name in ("command", "store", "endpoint"):
                line = line.replace(SHIPPED[name], wanted[name])
        elif line in (f"User={SHIPPED['user']}", f"Group={SHIPPED['user']}"):
            line = f"{line.partition('=')[0]}={user}"
        elif line.startswith("WorkingDirectory=") and wanted["store"] != SHIPPED["store"]:
            # outside the service's own folder nothing may be written, unless it is said
            line = f"WorkingDirectory=/var/lib/hotpolicy\nReadWritePaths={home}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _shipped(name: str) -> str:
    if name not in FILES:
        raise ConfigError(f"name: expected one of {', '.join(FILES)}, got {name!r}")
    return (FOLDER / FILES[name][0]).read_text()


def _this_command() -> Path:
    """The `hotpolicy` that was called, or the one beside this interpreter."""
    called = shutil.which(sys.argv[0]) if Path(sys.argv[0]).name == "hotpolicy" else None
    return Path(called).resolve() if called else Path(sys.executable).parent / "hotpolicy"


def _facts(board: Board) -> dict[str, Any]:
    own = {"memory_source": board.memory_source, "jetpacks": list(board.jetpacks), "power": board.power}
    return {"board": board.name, "memory_gb": board.memory_gb, **own}


def _words(fits: Mapping[str, bool]) -> dict[str, str]:
    return {name: "fits" if yes else "too large" for name, yes in fits.items()}
