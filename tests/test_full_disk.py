"""A disk that takes no more, or nothing at all: one line with the path, nothing left over, and serving goes on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tuning_parts import full_bundle

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


def test_every_command_that_writes_says_so_in_one_line(tmp_path: Path) -> None:
    base = full_bundle(tmp_path / "sealed")
    store, out = tmp_path / "store", tmp_path / "exported"
    Store(store).add(base.folder)
    told = limited(
        (1000, ["add", str(SHIPPED), "--store", str(store)]),
        (1000, ["serve", str(SHIPPED), "--store", str(store), "--endpoint", f"ipc://{tmp_path}/s"]),
        (1000, ["export", base.id, "--store", str(store), "--out", str(out)]),
    )
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


def test_what_is_needed_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: 1000000000\d*\.0 MB are needed, [0-9.]+ MB are free"):
        durable.require_room(tmp_path, 10**21)


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "--fork"]
MOUNTED = """
set -e
mount -t tmpfs -o size=2m none "$1"
cp -r "$2" "$1/store"
if [ "$4" = full ]; then cat /dev/zero > "$1/fill" 2> /dev/null || true; else mount -o remount,ro "$1"; fi
exec "$3" -c "$5" "$1/store" "$6"
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
