"""How far each view is online: `<workspace>/materialization/<view>.json`.

A watermark says: every source row with event_timestamp <= `watermark` is online. It is written
last, after the counts were checked, and atomically; while a run is under way `<view>.progress.json`
beside it says which chunks are done. Both name the source and the online store that they speak of,
so a replaced source or another store never inherits them.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from feature_repo.artifacts import write_json
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Before every row: Feast stamps no row with the epoch itself, which is how they spell missing."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The part of a source that is not expected to change: its rows up to a moment."""

    until: str
    """ISO time: the watermark less the lateness bound."""
    rows: int
    checksum: str
    """Sum of the rows' hashes, which does not depend on their order or their files."""


@dataclass(frozen=True, kw_only=True)
class Watermark:
    """The content of `<view>.json`."""

    view: str
    watermark: str
    """ISO time: every source row up to it is online."""
    source: dict[str, str]
    """Files of the source, by name, with what tells a changed file."""
    settled: Settled
    store: str
    """The online store that holds the rows, without a password, and the view's fields."""
    entities: int
    """Distinct entities of the source up to the watermark."""
    online: int
    """Online rows; more than `entities` where some vanished from the source or came after it."""
    rows: int
    """Rows that the last run wrote."""
    late_rows: int = 0
    """Rows of the last run's source from before its lateness bound that were not there earlier."""
    vanished: int = 0
    """Online rows whose entity the source does not have any more."""
    made_at: str = ""

    @property
    def moment(self) -> datetime:
        return datetime.fromisoformat(self.watermark)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**{**values, "settled": Settled(**values["settled"])})


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The content of `<view>.progress.json`: what of one run is written."""

    source: dict[str, str]
    store: str
    start: str
    done: str
    """ISO time: the rows of (start, done] are online."""


def folder(workspace: Workspace) -> Path:
    return workspace.root / "materialization"


def read_watermark(workspace: Workspace, view: str) -> Watermark | None:
    """The watermark of a view, None if it was never materialized. ArtifactError if unreadable."""
    path = folder(workspace) / f"{view}.json"
    if not path.exists():
        return None
    try:
        return Watermark.from_json(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{path} is not a watermark ({error!r}); remove it and run `crescendo materialize`, "
            "which then reads the whole source"
        ) from error


def watermark_names(workspace: Workspace) -> list[str]:
    """The views that have a watermark, readable or not."""
    names = sorted(path.name for path in folder(workspace).glob("*.json"))
    return [name.removesuffix(".json") for name in names if not name.endswith(".progress.json")]


def write_watermark(workspace: Workspace, mark: Watermark) -> None:
    """Ends a run: the watermark, then its progress goes."""
    write_json(folder(workspace) / f"{mark.view}.json", asdict(mark))
    drop_progress(workspace, mark.view)


def read_progress(workspace: Workspace, view: str) -> Progress | None:
    """What a run that was cut off has done; None where there was none, or it says nothing."""
    path = _progress_path(workspace, view)
    try:
        return Progress(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return None  # it only saves time: what it does not say is done again


def write_progress(workspace: Workspace, view: str, progress: Progress) -> None:
    write_json(_progress_path(workspace, view), asdict(progress))


def drop_progress(workspace: Workspace, view: str) -> None:
    _progress_path(workspace, view).unlink(missing_ok=True)


def _progress_path(workspace: Workspace, view: str) -> Path:
    return folder(workspace) / f"{view}.progress.json"
