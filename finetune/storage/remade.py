"""`info.json` made again from the episodes' own files, of which each says what it is (`layout.with_record`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq

from hotpolicy.finetune.storage import layout
from hotpolicy.finetune.storage.images import CODECS
from hotpolicy.finetune.storage.layout import Info
from hotpolicy.runtime.errors import DatasetError
from hotpolicy.runtime.messages import RobotSpec


def record_of(path: Path) -> dict[str, Any]:
    try:
        return layout.load_record(path)
    except DatasetError:
        return {}


def info_of_files(root: Path) -> Info | None:
    """`info.json` made again from what our recorder notes in every episode's file; None for files of others."""
    for path in sorted((root / "data").glob("*/*.parquet")):
        if not (record := record_of(path)):
            continue
        spec = RobotSpec.from_dict(record["spec"])
        columns = set(pq.read_schema(path).names)
        names = {camera.name: f"{layout.IMAGES}{camera.name}" for camera in spec.cameras}
        videos = [root / "videos" / column for column in names.values() if column not in columns]
        clip = next((path for folder in videos for path in sorted(folder.glob("*/*.mp4"))), None)
        codec = CODECS["av1" if clip and _codec_of(clip) == "av1" else "h264"].to_dict()
        features = layout.features_of(spec, "image", codec)
        stored = layout.features_of(replace(spec, cameras=()), "image", codec).keys()
        for camera in spec.cameras:
            if names[camera.name] not in columns:
                one = layout.features_of(replace(spec, cameras=(camera,)), "video", codec)
                features[names[camera.name]] = one[names[camera.name]]
        if stored <= columns:
            counts = [pq.read_metadata(file).num_rows for file in _readable(root)]
            return Info(
                layout.whole_rate(spec), features, len(counts), sum(counts),
                robot_type=record.get("robot_type", "so_follower"),
            )  # fmt: skip
    return None


def _readable(root: Path) -> list[Path]:
    files = sorted((root / "data").glob("*/*.parquet"))
    return [path for path in files if record_of(path)]


def _codec_of(path: Path) -> str:
    try:
        with av.open(str(path)) as container:
            return container.streams.video[0].codec_context.codec.canonical_name
    except (av.FFmpegError, IndexError):
        return ""
