"""What TensorBoard and trackio have of a run, read from the files that they keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Found:
    """What a back-end has: by key, step and value."""

    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    images: dict[str, list[tuple[int, bytes]]] = field(default_factory=lambda: defaultdict(list))
    texts: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    runs: int = 0


def tensorboard(folder: Path, _project: str) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = Found()
    for events in sorted(folder.glob("runs/*/events*")):
        found.runs += 1
        read = EventAccumulator(str(events), size_guidance=dict.fromkeys(("images", "tensors"), 0))
        read.Reload()
        for key in read.Tags()["scalars"]:
            found.scalars[key] += [(e.step, e.value) for e in read.Scalars(key)]
        for key in read.Tags()["images"]:
            found.images[key] += [(e.step, e.encoded_image_string) for e in read.Images(key)]
        for key in read.Tags()["tensors"]:
            found.texts[key.removesuffix("/text_summary")] += [
                (e.step, make_ndarray(e.tensor_proto).item().decode()) for e in read.Tensors(key)
            ]
    return found


def trackio(_folder: Path, project: str) -> Found:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import MEDIA_DIR

    found = Found()
    for run in Api().runs(project):
        found.runs += 1
        for line in SQLiteStorage.get_logs(project, run.name):
            step = line.get("train/global_step")
            for key, value in line.items():
                kind = value.get("_type") if isinstance(value, dict) else ""
                if kind == "trackio.image":
                    path = MEDIA_DIR / value["file_path"]
                    found.images[key].append((step, path.read_bytes()))
                elif kind == "trackio.markdown":
                    found.texts[key].append((step, value["_value"]))
                elif isinstance(value, int | float):
                    found.scalars[key].append((step, value))
        for alert in run.alerts():
            found.texts["emoreg/alerts"].append(
                (alert["step"], f"{alert['level']}: {alert['title']}: {alert['text']}")
            )
    return found


READ: dict[str, Callable[[Path, str], Found]] = {"tensorboard": tensorboard, "trackio": trackio}
