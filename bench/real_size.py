"""What a pi0 of real size costs to import, to load and to swap: seconds, memory of its own, bytes from the disk.

    python bench/real_size.py [--folder FOLDER] [--rounds 3] [--naive] [--fp32] [--export int8] [--out real_size.json]

Writes a checkpoint of random weights in the published layout (3.24 B parameters, bf16, 6.5 GB; 14 GB of disk with the
bundle that is made of it) and removes it afterwards. Every measurement is a process of its own, watched from outside
every few milliseconds: "anonymous" is memory that the kernel cannot drop and read again from a file. Cold: the files
were dropped from the page cache just before; how much was then read from the disk is said. --naive loads as most
programs do (6.6 GB, with as much of the file mapped beside it); --fp32 as the engine does where the processor does not
multiply bf16 (13.2 GB). --export PRECISION writes it as ONNX, compares it with torch on a frame of noise, and then
swaps deltas into the export (13.2 GB for torch's side, and 4 GB of disk for int8).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hotpolicy.launch.machine import describe_machine

WATCH_S = 0.004
LOAD_S, LOAD_GB = 10.0, 0.5  # the bars: construct and load; anonymous memory before weights are touched
Row = dict[str, Any]


@dataclass
class Phases:
    """What a process did when; `rows` hold begin and end on the clock that all processes share."""

    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin, read = time.monotonic(), _bytes_read()
        yield
        end = time.monotonic()
        self.rows.append(
            {"phase": name, "begin": begin, "end": end, "disk_gb": (_bytes_read() - read) / 1e9, "anon_gb": _anon_gb()}
        )


# What is measured. Each runs in a fresh process; imports come before its phases.


def naive(phases: Phases, checkpoint: Path) -> None:
    """As most programs load: a model with random weights of its own, then the file read, then copied."""
    import torch
    from safetensors.torch import load_file

    from hotpolicy.runtime.model.pi0 import PI0, Pi0
    from hotpolicy.runtime.model.weights import published_to_ours

    torch.set_default_dtype(torch.bfloat16)
    with phases.phase("construct"):
        model = Pi0(PI0)
    with phases.phase("read and copy"):
        tensors = load_file(checkpoint / "model.safetensors")
        names = published_to_ours(tensors).names
        model.load_state_dict({names[key]: tensor for key, tensor in tensors.items()})


def import_(phases: Phases, checkpoint: Path, out: Path) -> Path:
    """-> the sealed bundle."""
    from hotpolicy.launch.import_settings import Flags, load_settings
    from hotpolicy.runtime.checkpoint.importer import Extras, import_checkpoint, read_checkpoint
    from hotpolicy.runtime.checkpoint.sizes import Heads

    settings = load_settings("so101", None, Flags())
    if (own := checkpoint / "heads.json").exists():  # of a model whose widths are not the published ones
        settings = replace(settings, heads=Heads(**json.loads(own.read_text())))
    with phases.phase("account for every tensor"):
        read = read_checkpoint(checkpoint)
    with phases.phase("seal and certify"):
        imported = import_checkpoint(read, out, settings, Extras())
    return imported.bundle.folder


def load(phases: Phases, bundle_folder: Path) -> None:
    """In the parts that loading is made of."""
    from hotpolicy.runtime.bundle import Bundle
    from hotpolicy.runtime.engine.torch_weights import build_model, tensors_from_numpy

    with phases.phase("open"):
        bundle = Bundle.open(bundle_folder)
    with phases.phase("map"):
        file = bundle.mapped()
        tensors = tensors_from_numpy(file)
    with phases.phase("construct and assign"):
        model = build_model(bundle.manifest.model, tensors)
    with phases.phase("verify, which touches all"):
        bundle.check(file, bundle.manifest.tensors)
    assert sum(p.numel() for p in model.parameters()) == sum(e.parameters for e in file.entries.values())


def seal_deltas(phases: Phases, bundle_folder: Path, out: Path) -> None:
    """A delta of the heads and one of the whole expert, as tuning makes them."""
    from hotpolicy.runtime.bundle import Bundle, seal
    from hotpolicy.runtime.model.weights import part

    base = Bundle.open(bundle_folder)
    file, manifest = base.mapped(), base.manifest
    for kind in ("heads", "expert"):
        changed = {name: -file[name] for name in file if part(name) == "heads" or part(name).startswith(kind)}
        with phases.phase(f"seal a delta: {kind}"):
            delta = seal(
                out, kind="delta", parent=base.id, model=manifest.model, tensors=changed, spec=manifest.spec,
                transforms=manifest.transforms, provenance={"made_by": "bench"},
            )  # fmt: skip
        (out / kind).symlink_to(delta.folder.name)


def serve(phases: Phases, bundle_folder: Path, dtype: str, deltas: Path | None) -> None:
    """As the server loads, and then swaps."""
    from hotpolicy.runtime.bundle import Bundle
    from hotpolicy.runtime.engine.torch_engine import TorchEngine

    with phases.phase(f"load an engine, {dtype}"):
        engine = TorchEngine.load(Bundle.open(bundle_folder), dtype=dtype)
    for kind in ("heads", "expert") if deltas else ():
        with phases.phase(f"swap: {kind}"):
            swapped = engine.derive(Bundle.open((deltas / kind).resolve()))  # type: ignore[operator]
    assert not deltas or swapped is not engine


def export_(phases: Phases, bundle_folder: Path, out: Path, precision: str, deltas: Path) -> None:
    """The certificate's bound is off: random weights say nothing about a task."""
    from hotpolicy.runtime.bundle import Bundle
    from hotpolicy.runtime.engine.onnx_engine import OnnxEngine
    from hotpolicy.runtime.export import export

    with phases.phase(f"export in {precision}"):
        exported = export([Bundle.open(bundle_folder)], out, precision, bound=1e9, made_up=1)
    with phases.phase("open both sessions, warm"):
        engine = OnnxEngine.open(exported)
    for kind in ("heads", "expert"):
        with phases.phase(f"swap: {kind}"):
            engine.derive(Bundle.open((deltas / kind).resolve()))
    size = {path.name: round(path.stat().st_size / 1e9, 2) for path in sorted(out.glob("*.data"))}
    error = {name: exported.certificate[name] for name in ("golden", "made_up", "max_abs_error", "mean_abs_error")}
    print(f"GB {size}; {error}", file=sys.stderr)


# Around them.


def measure(what: str, *arguments: str) -> list[Row]:
    """Run one of the above in a fresh process -> its phases, with the highest anonymous memory of each."""
    command = [sys.executable, __file__, "--measure", what, *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    samples = []
    while child.poll() is None:
        with suppress(FileNotFoundError, ProcessLookupError, StopIteration):  # it has just ended
            samples.append((time.monotonic(), _anon_gb(child.pid)))
        time.sleep(WATCH_S)
    assert child.stdout is not None
    text = child.stdout.read()
    if child.returncode:
        raise SystemExit(f"{what}: exit code {child.returncode}")
    rows: list[Row] = json.loads(text)
    for row in rows:
        begin, end = row.pop("begin"), row.pop("end")
        row["seconds"] = end - begin
        row["peak_anon_gb"] = max([row["anon_gb"], *(gb for at, gb in samples if begin <= at <= end)])
    return rows


def drop(folder: Path) -> None:
    """Out of the page cache. What the disk does not have yet stays, so it is written first."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def run(
    folder: Path, rounds: int, with_naive: bool, with_fp32: bool, precision: str | None
) -> Iterator[tuple[str, list[Row]]]:
    """Name of a run, and its phases."""
    from random_pi0 import write_checkpoint

    from hotpolicy.runtime.model.pi0 import PI0

    checkpoint, bundles, deltas = folder / "published", folder / "bundles", folder / "deltas"
    count = write_checkpoint(checkpoint, PI0)
    size = (checkpoint / "model.safetensors").stat().st_size
    print(f"{count:,} parameters, {size / 1e9:.2f} GB", flush=True)
    if with_naive:
        for state in ("cold", "warm"):
            if state == "cold":
                drop(checkpoint)
            yield f"naive, {state}", measure("naive", str(checkpoint))
    drop(checkpoint)
    yield "import, cold", measure("import", str(checkpoint), str(bundles))
    shutil.rmtree(checkpoint)
    (bundle,) = bundles.iterdir()
    yield "deltas", measure("deltas", str(bundle), str(deltas))
    for _ in range(rounds):
        drop(bundle)
        yield "load, cold", measure("load", str(bundle))
        yield "load, warm", measure("load", str(bundle))
    drop(folder)
    yield "serve, cold", measure("serve", str(bundle), "bf16", str(deltas))
    yield "serve, warm", measure("serve", str(bundle), "bf16", str(deltas))
    if with_fp32:
        yield "serve in fp32, warm", measure("serve", str(bundle), "fp32")
    if precision:
        yield "ONNX", measure("export", str(bundle), str(folder / "exported"), precision, str(deltas))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--naive", action="store_true")
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--export", metavar="PRECISION")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measured(*options.measure)))
        return
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()), f"load {os.getloadavg()[0]:.1f}", flush=True)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="real-size-", dir=options.folder) as folder:
        for name, rows in run(Path(folder), options.rounds, options.naive, options.fp32, options.export):
            results.append({"run": name, "phases": rows})
            print(f"\n{name}  (load {os.getloadavg()[0]:.1f})")
            for row in rows:
                print(
                    f"  {row['phase']:<28} {row['seconds']:7.2f} s   peak anonymous {row['peak_anon_gb']:6.2f} GB   "
                    f"from disk {row['disk_gb']:5.2f} GB",
                    flush=True,
                )
    loads = [each["phases"] for each in results if each["run"].startswith("load")]
    if not loads:
        return
    seconds = max(sum(row["seconds"] for row in rows) for rows in loads)
    untouched = max(row["peak_anon_gb"] for rows in loads for row in rows[:-1])
    for bar, value, limit in (("load, s", seconds, LOAD_S), ("anonymous before touching, GB", untouched, LOAD_GB)):
        print(f"{bar}: slowest or highest {value:.2f}, bar {limit:g}: {'met' if value < limit else 'MISSED'}")
    if options.out:
        options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


def _measured(what: str, *arguments: str) -> list[Row]:
    phases = Phases()
    paths = [Path(argument) for argument in arguments]
    if what == "naive":
        naive(phases, *paths)
    elif what == "import":
        import_(phases, *paths)
    elif what == "deltas":
        seal_deltas(phases, *paths)
    elif what == "export":
        export_(phases, paths[0], paths[1], arguments[2], paths[3])
    elif what == "load":
        load(phases, *paths)
    else:
        serve(phases, paths[0], arguments[1], paths[2] if len(paths) > 2 else None)
    return phases.rows


def _bytes_read() -> int:
    """From the disk, by this process."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def _anon_gb(process: int | str = "self") -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
