"""What a `forget` is about to do, on the disk before it does it.

Writes `<workspace>/forgotten/plan.json` first and removes it last: a run that was killed in between
is finished by the next one, whatever that was asked for. The plan holds what the run itself
destroys: which events were the user's, and when each artifact was made, which must not change.
While it is there it names the user, as the tables did until then.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from feature_repo.artifacts import parquet_files, write_json
from feature_repo.durable_files import sync
from feature_repo.errors import ArtifactError
from feature_repo.scratch import only_writer
from feature_repo.tombstones import folder
from feature_repo.workspace import Workspace
from ray_jobs.forget_files import artifacts
from ray_jobs.forget_rows import ForgottenEvent, Target

PLAN = "plan.json"


@dataclass(kw_only=True)
class Plan:
    """One forgetting, from its first step to its proof."""

    user_id: int | None
    source_id: str | None
    until_us: int
    """Moment of forgetting, microseconds since 1970: what happened up to it does not come back."""
    event_ids: list[int] = field(default_factory=list)
    events: list[dict[str, int]] = field(default_factory=list)
    made_at: dict[str, str] = field(default_factory=dict)
    """Artifact's folder -> its created_at."""
    log_before: str | None = None
    """Id of the event log that the sources were made from."""
    removed: dict[str, int] = field(default_factory=dict)
    """Rows that were removed so far, per store, also by runs that were killed."""

    def target(self) -> Target:
        return Target(
            user_id=self.user_id,
            source_id=self.source_id,
            event_ids=frozenset(self.event_ids),
            events=tuple(ForgottenEvent(**event) for event in self.events),
        )

    def remember(self, workspace: Workspace) -> None:
        """Notes what the run is about to change, the first time that it sees it."""
        from ray_jobs.sequences import events_id

        for name, manifest in artifacts(workspace):
            self.made_at.setdefault(name, manifest.created_at)
        if self.log_before is None and parquet_files(workspace.events):
            self.log_before = events_id(workspace)
        self.save(workspace)

    def count(self, workspace: Workspace, store: str, rows: int) -> None:
        """Adds removed rows. A kill between the removal and this leaves them uncounted."""
        self.removed[store] = self.removed.get(store, 0) + rows
        self.save(workspace)

    def save(self, workspace: Workspace) -> None:
        write_json(_path(workspace), asdict(self))

    def done(self, workspace: Workspace) -> None:
        for partial in folder(workspace).glob(f".{PLAN}.*"):
            partial.unlink()  # of a run that was killed while it wrote: it names the user too
        _path(workspace).unlink()
        sync(folder(workspace))


def unfinished(workspace: Workspace) -> Plan | None:
    """The plan of a run that was killed."""
    path = _path(workspace)
    if not path.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        return Plan(**values)
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} is not a plan ({error}); remove it and run the same `crescendo forget` again"
        ) from error


@contextmanager
def one_at_a_time(workspace: Workspace) -> Iterator[None]:
    """Refuses (InputError) while another `forget` of this workspace is running."""
    lock = folder(workspace) / ".running"  # the folder's own lock is for steps of milliseconds
    lock.mkdir(parents=True, exist_ok=True)
    with only_writer(lock):
        yield


def _path(workspace: Workspace) -> Path:
    return folder(workspace) / PLAN
