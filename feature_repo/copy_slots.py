"""Local copies of a workspace in an object store: one for each session that runs at the same time.

<cache>/crescendo/<hash of the URI>/copy-0/workspace/     the copy
                                          state.json      what was last known to be published
                                          fetched/        downloads under way
                                          set_aside-.../  work that another machine overruled
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from fcntl import LOCK_EX, LOCK_NB, flock
from itertools import count
from pathlib import Path
from typing import Any

from feature_repo.artifacts import write_json
from feature_repo.workspace_files import Seen, Snapshot, look, snapshot

STATE = "state.json"


@dataclass
class CopyState:
    """What is known about a copy. `save` after every change."""

    slot: Path
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    base: Snapshot = field(default_factory=dict)
    """What was published when it was last looked at."""
    target: Snapshot | None = None
    """While the files are being made those of a newer state: that state."""
    seen: Seen = field(default_factory=Seen)
    read_only: bool = False
    """The last session's own files are nobody's."""

    @property
    def root(self) -> Path:
        return self.slot / "workspace"

    @classmethod
    def load(cls, slot: Path) -> "CopyState":
        try:
            held = json.loads((slot / STATE).read_text())
        except FileNotFoundError:
            state = cls(slot)
            state.save()
            return state
        files = {name: (size, time, sha) for name, (size, time, sha) in held["files"].items()}
        seen = Seen(looked_at_ns=held["looked_at_ns"], files=files)
        return cls(
            slot, held["id"], held["base"], held["target"], seen=seen, read_only=held["read_only"]
        )

    def save(self) -> None:
        names = [each.name for each in fields(self) if each.name not in ("slot", "seen")]
        value: dict[str, Any] = {name: getattr(self, name) for name in names}
        write_json(self.slot / STATE, value | asdict(self.seen))

    def look(self) -> Snapshot:
        """The files of the copy as they are now."""
        self.seen = look(self.root, self.seen)
        self.save()
        return snapshot(self.seen)

    def has_unpublished(self) -> bool:
        """Whether a writer left work behind: readers must not see it."""
        if self.read_only or not self.root.is_dir():
            return False
        return self.target is not None or self.look() != self.base


def copies_folder(uri: str, cache: Path | None) -> Path:
    """Where the copies of one workspace lie. The same URI of another server is another one."""
    place = f"{os.environ.get('AWS_ENDPOINT_URL', '')} {uri}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crescendo"
    return (cache or home) / hashlib.sha256(place.encode()).hexdigest()[:16]


@contextmanager
def free_copy(folder: Path, *, skip_unpublished: bool) -> Iterator[CopyState]:
    """The first copy that no session uses, made if needed. Locked until the session ends."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in count():
        slot = folder.absolute() / f"copy-{number}"
        slot.mkdir(exist_ok=True)
        lock = os.open(slot, os.O_RDONLY)
        try:
            if _take(lock):
                state = CopyState.load(slot)
                if not (skip_unpublished and state.has_unpublished()):
                    yield state
                    return
        finally:
            os.close(lock)


def _take(lock: int) -> bool:
    try:
        flock(lock, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True
