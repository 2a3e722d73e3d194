"""What of a recording is sealed, and how one more episode comes to be: its files first, `meta/info.json` last."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.storage import layout, stats
from hotpolicy.finetune.storage.catalog import Clip, EpisodeInfo, write_row
from hotpolicy.finetune.storage.disk import move, put
from hotpolicy.finetune.storage.layout import WORK, Info
from hotpolicy.finetune.storage.take import Take
from hotpolicy.runtime.digest import file_sha256
from hotpolicy.runtime.messages import RobotSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sealed:
    """What info.json and its neighbours say of the folder `root`; replaced as a whole when an episode is sealed."""

    root: Path
    spec: RobotSpec
    info: Info
    tasks: tuple[str, ...]
    versions: tuple[str, ...]  # policy versions by the numbers in the column policy_version
    sums: Mapping[str, str]  # file -> sha256
    stats: Mapping[str, stats.Stats]
    place: Mapping[str, int]  # chunk_index and file_index of the next episode's files

    @classmethod
    def load(cls, root: Path, spec: RobotSpec) -> tuple[Sealed, tuple[str, ...]]:
        """Take up the sealed state, and clear away what a crash left beyond it; what of, for people. Raises
        DatasetError as `Dataset.open` does."""
        dataset = Dataset.open(root)
        place = _next_place(dataset.info, *(place for episode in dataset.episodes for place in episode.places))
        sealed = cls(
            root, spec, dataset.info, dataset.tasks, dataset.versions, dataset.sums, dataset.stats(), place
        )  # fmt: skip
        leftovers = sealed.leftovers()
        if any(WORK not in path.parts for path in leftovers):
            sealed.put_summaries()  # they may run ahead of info.json
        for path in leftovers:
            path.unlink(missing_ok=True)  # the summaries above may have used up their own
        if not leftovers:
            return sealed, ()
        names = ", ".join(str(path.relative_to(root)) for path in leftovers)
        repaired = f"removed what was left of an episode that was never sealed: {names}"
        log.warning("%s: %s", root, repaired)
        return sealed, (repaired,)

    def add(self, take: Take, success: bool | None) -> Sealed:
        """Seal one more episode; returns once it is durable. Raises OSError or FFmpegError when the disk refuses."""
        root, place, number = self.root, self.place, self.info.total_episodes
        videos = take.finish()
        tasks = self.tasks if take.task in self.tasks else (*self.tasks, take.task)
        new_versions = {version for version in take.versions if version} - set(self.versions)
        versions = (*self.versions, *sorted(new_versions))
        columns = take.columns(tasks.index(take.task), versions, success)
        episode_stats = take.stats(columns)

        data = root / WORK / "data.parquet"
        data.write_bytes(
            layout.parquet(layout.with_record(take.rows(columns), self._record(take, versions, success)))
        )  # fmt: skip
        moves = {layout.DATA.format(**place): data}
        moves |= {layout.VIDEO.format(video_key=column, **place): path for column, path in videos.items()}
        sums = {**self.sums, **{name: file_sha256(path) for name, path in moves.items()}}
        for name, path in moves.items():
            move(path, root / name)
        clips = {column: Clip(layout.VIDEO.format(video_key=column, **place), 0.0) for column in videos}
        file = layout.DATA.format(**place)
        episode = EpisodeInfo(number, len(take), take.task, self.info.total_frames, file, clips, success, 0)
        row = layout.parquet(write_row(episode, self.info.fps, place, episode_stats))
        put(root / layout.EPISODES.format(**place), row)

        info = replace(
            self.info,
            total_episodes=number + 1,
            total_frames=self.info.total_frames + len(take),
            total_tasks=len(tasks),
        )
        merged = stats.merge_columns([self.stats, episode_stats])
        after = Sealed(root, self.spec, info, tasks, versions, sums, merged, _next_place(info, place))
        after.put_summaries()
        put(root / layout.INFO, layout.json_file(info.to_dict()))  # from here on it is sealed
        return after

    def put_summaries(self) -> None:
        """All of `meta` but the episodes and `info.json`."""
        put(self.root / layout.TASKS, layout.tasks_file(self.tasks))
        put(self.root / layout.STATS, layout.json_file(stats.to_lists(self.stats)))
        extra = {
            "schema": 1,
            "spec": self.spec.to_dict(),
            "policy_versions": self.versions,
            "sha256": self.sums,
        }
        put(self.root / layout.EXTRA, layout.json_file(extra))

    def leftovers(self) -> list[Path]:
        """What a crash may have left of the one episode after the sealed ones. Nothing else is ever touched."""
        root, place = self.root, self.place
        names = [layout.DATA.format(**place), layout.EPISODES.format(**place)]
        names += [layout.VIDEO.format(video_key=column, **place) for column in self.info.features]
        found = [root / name for name in names if (root / name).exists()]
        found += sorted((root / "meta").glob("**/.*.tmp"))
        work = root / WORK
        return found + sorted(path for path in (work.iterdir() if work.is_dir() else ()) if path.name != "lock")

    def _record(self, take: Take, versions: tuple[str, ...], success: bool | None) -> dict[str, Any]:
        """What each episode's file says of itself, so that all of `meta` can be made again from the files."""
        return {
            "task": take.task,
            "success": success,
            "versions": {version: versions.index(version) for version in sorted(set(filter(None, take.versions)))},
            "spilled": take.spilled,
            "spec": self.spec.to_dict(),
            "robot_type": self.info.robot_type,
        }


def _next_place(info: Info, *used: Mapping[str, int]) -> dict[str, int]:
    """Where the files of the next episode go: behind all that are in use. Each episode has files of its own."""
    files = [place["chunk_index"] * info.chunks_size + place["file_index"] + 1 for place in used]
    chunk, file = divmod(max([info.total_episodes, *files]), info.chunks_size)
    return {"chunk_index": chunk, "file_index": file}
