"""The parts of the benchmark of real size, at a size for tests: what it writes imports, loads and swaps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from random_policy import TINY_SIGLIP

from hotpolicy.runtime.model.weights import published_to_ours
from hotpolicy.runtime.versions.tensor_file import TensorFile


def test_what_it_writes_is_a_published_checkpoint_that_imports_loads_and_swaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))
    from dataclasses import replace

    import random_pi0
    import real_size

    config = replace(TINY_SIGLIP, step_embedding=False, action_dim=32, vocabulary=256)
    count = random_pi0.write_checkpoint(tmp_path / "published", config)
    heads = {"head_dim": config.language.head_dim, "vision": config.vision.heads}
    (tmp_path / "published" / "heads.json").write_text(json.dumps(heads))
    file = TensorFile(tmp_path / "published" / "model.safetensors")
    assert published_to_ours(file).complete
    assert {entry.dtype for entry in file.entries.values()} == {"BF16"}
    assert sum(entry.parameters for entry in file.entries.values()) == count

    phases = real_size.Phases()
    bundle = real_size.import_(phases, tmp_path / "published", tmp_path / "bundles")
    real_size.drop(tmp_path)
    real_size.load(phases, bundle)
    real_size.seal_deltas(phases, bundle, tmp_path / "deltas")
    real_size.serve(phases, bundle, "bf16", tmp_path / "deltas")
    names = [row["phase"] for row in phases.rows]
    assert names[2:6] == ["open", "map", "construct and assign", "verify, which touches all"]
    assert names[-2:] == ["swap: heads", "swap: expert"]
    assert all(row["end"] >= row["begin"] and 0 < row["anon_gb"] < 8 for row in phases.rows)
