"""A disk that takes no more, or nothing at all: one line with the path, nothing left over, and serving goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_openpi, write_settings
from made_up import SPEC, episode
from tuning_parts import full_bundle

from hotpolicy.finetune.recorder import Recorder
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.runtime import durable
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.store import Store

BENCH = Path(__file__).parent.parent / "bench"
# Each command in a fork that may write files of so many bytes only: the kernel refuses the rest.
LIMITED = """
import json, resource, sys
from forked import Forked
for limit, words in json.loads(sys.argv[1]):
    run = Forked(*words, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    print(json.dumps([run.wait(), run.said]), flush=True)
"""


def limited(*commands: tuple[int, list[str]]) -> list[tuple[int, str]]:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps(commands)], capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(BENCH), *sys.path]))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file() and path.name != "lock"}


def test_every_command_that_writes_says_so_in_one_line(tmp_path: Path) -> None:
    base = full_bundle(tmp_path / "sealed")
    store, out, imported = tmp_path / "store", tmp_path / "exported", tmp_path / "imported"
    Store(store).add(base.folder)
    theirs, robot = write_openpi(tmp_path / "theirs", "pi05"), write_settings(tmp_path / "robot.yaml")
    with Recorder.open(tmp_path / "set", SPEC) as recorder:
        recorder.write(episode(0))
    (tmp_path / "set/meta/stats.json").write_text("{}")  # to be made again
    found = contents(tmp_path / "set")
    told = limited(
        (1000, ["add", str(SHIPPED), "--store", str(store)]),
        (1000, ["serve", str(SHIPPED), "--store", str(store), "--endpoint", f"ipc://{tmp_path}/s"]),
        (1000, ["export", base.id, "--store", str(store), "--out", str(out)]),
        (1000, ["import", str(theirs), "--settings", str(robot), "--out", str(imported)]),
        (100, ["dataset", "repair", str(tmp_path / "set")]),
    )
    assert len(told) == 5
    for code, said in told:
        last = said.splitlines()[-1]
        assert code == 2, said
        assert last.startswith("hotpolicy: ")
        assert str(tmp_path) in last
        assert os.strerror(errno.EFBIG) in last
        assert "Traceback" not in said
    assert [bundle.id for bundle in Store(store).versions()] == [base.id]
    assert not out.exists()
    assert not list(tmp_path.glob(".export-*"))
    assert not list((store / "versions").glob(".add-*"))
    assert not list(imported.iterdir())
    assert contents(tmp_path / "set") == found
    assert not list(tmp_path.glob(".set.*"))


def test_a_file_that_is_not_replaced_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.replace_file(tmp_path / "file", b"before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        durable.replace_file(tmp_path / "file", b"after")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"before")]
    assert durable.refusal(caught.value).endswith(" MB are free")


def test_what_is_needed_is_more_than_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=63_999_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match=r"64\.0 MB are needed, 63\.9 MB are free"):
        durable.require_room(tmp_path, 64_000_000)


def test_what_is_needed_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: 1000000000\d*\.0 MB are needed, [0-9.]+ MB are free"):
        durable.require_room(tmp_path / "not" / "there yet", 10**21)
    assert not list(tmp_path.iterdir())


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "--fork"]
MOUNTED = """
set -e
mount -t tmpfs -o size=2m none "$1"
cp -rp "$2" "$1/store"
if [ "$4" = full ]; then cat /dev/zero > "$1/fill" 2> /dev/null || true; else mount -o remount,ro "$1"; fi
exec "$3" -c "$5" "$1/store" "$6"
"""
# Commands, one after another in one process, and their exit codes.
ONE_BY_ONE = """
import json, sys
from hotpolicy.launch import cli
codes = []
for words in json.loads(sys.argv[2]):
    sys.argv[1:] = ["--log-level", "error", *words]
    try:
        cli.main()
    except SystemExit as exit:
        codes.append(exit.code)
print(json.dumps(codes))
"""
# A version is refused, and what was live goes on, in a server that found the disk like that.
SERVED = """
import sys
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.errors import HotpolicyError
from hotpolicy.runtime.versions.loader import load_with
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
store = Store(sys.argv[1])
slot = Slot(store, load_with("echo"))
control = Control(slot, store)
for number, version in enumerate([sys.argv[2], store.versions()[-1].id]):
    try:
        control.handle({"kind": "swap", "version": version, "request_id": str(number), "by": "test"})
    except HotpolicyError as error:
        print(error)
assert slot.live.version == store.live() == store.versions()[0].id
print("serves")
"""


def test_every_command_that_writes_says_of_a_read_only_disk_which_path(tmp_path: Path) -> None:
    if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("this user may mount nothing")
    disk, theirs = tmp_path / "disk", write_openpi(tmp_path / "theirs", "pi05")
    robot, made = write_settings(tmp_path / "robot.yaml"), seal_echo(tmp_path / "made", 0)
    Store(tmp_path / "store").add(made.folder)
    with Recorder.open(tmp_path / "store/set", SPEC) as recorder:
        recorder.write(episode(0))
    (tmp_path / "store/set/meta/stats.json").write_text("{}")  # to be made again
    disk.mkdir()
    commands = [
        ["add", str(made.folder), "--store", str(disk / "new")],
        ["add", str(SHIPPED), "--store", str(disk / "store")],
        ["import", str(theirs), "--settings", str(robot), "--out", str(disk / "imported"), "--json"],
        ["import", str(theirs), "--settings", str(robot), "--store", str(disk / "store"), "--json"],
        ["dataset", "repair", str(disk / "store/set")],
    ]
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", MOUNTED, "sh", str(disk), str(tmp_path / "store"), sys.executable, "readonly",
         ONE_BY_ONE, json.dumps(commands)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [2] * len(commands), done.stderr
    for said, words in zip(done.stderr.splitlines(), commands, strict=True):
        assert said.startswith("hotpolicy: "), said
        assert os.strerror(errno.EROFS) in said, (words, said)
        assert str(disk) in said


@pytest.mark.parametrize("kind", ["full", "readonly"])
def test_a_server_on_such_a_disk_serves_on(tmp_path: Path, kind: str) -> None:
    if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("this user may mount nothing")
    base, store = seal_echo(tmp_path / "made", 0), Store(tmp_path / "store")
    store.add(base.folder)
    store.promote(base.id, "ann", "r0")
    store.add(seal_echo(tmp_path / "made", 1, parent=base).folder)
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", MOUNTED, "sh", str(tmp_path / "disk"), str(store.root), sys.executable, kind, SERVED,
         str(SHIPPED.resolve())],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    taken_in, pointer, serves = done.stdout.splitlines()
    reason = os.strerror(errno.ENOSPC if kind == "full" else errno.EROFS)
    assert reason in taken_in
    assert reason in pointer
    assert "MB are needed, 0.0 MB are free" in taken_in or kind == "readonly"
    assert serves == "serves"
