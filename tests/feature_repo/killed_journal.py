"""Appends and folds live events over and over, killed one step later each time.

    python -m tests.feature_repo.killed_journal FOLDER

For n = 1, 2, ... a fork works on a copy of the workspace and sends itself SIGKILL before step n;
a step is whatever changes the disk (tests/kill_steps.py), and a write to a journal, of which half
is done. Then every event whose append had returned has to be in the log after a fold, none twice,
and the same work done again has to end as if nothing had happened. The last line says how many
kills that were, and after how many of them something acknowledged was not yet in the log.
"""

import os
import shutil
import signal
import sys
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq

from feature_repo.artifacts import Manifest, read_manifest, write_artifact
from feature_repo.event_journal import append, fold, journal_folder, remove
from feature_repo.workspace import Workspace
from tests.event_logs import write_events
from tests.feature_repo.live_log import SOURCE_EVENTS, live
from tests.kill_steps import forked, kill_before

FORGOTTEN = 105


def prepare(workspace: Workspace) -> None:
    manifest = Manifest(kind="tables", id="tables", rows={"events": len(SOURCE_EVENTS)})
    with write_artifact(workspace.tracks.parent, manifest) as partial:
        write_events(Workspace(partial.parent / partial.name), SOURCE_EVENTS)
        shutil.move(partial / "tables" / "events", partial / "events")
        (partial / "tables").rmdir()


def work(workspace: Workspace, acknowledged: Path | None = None) -> None:
    """Two rounds of events; source event 1 is delivered again, and 101 comes twice."""
    for round_ids in ([101, 102, 1], [103, 101, 104, FORGOTTEN]):
        for event_id in round_ids:
            append(workspace, live(event_id))
            if acknowledged is not None:
                with acknowledged.open("a") as stream:
                    stream.write(f"{event_id}\n")
        fold(workspace)
    remove(workspace, event_ids=[FORGOTTEN])


def half_writes(step: int) -> None:
    """From here on the write of that number to a file descriptor ends in its middle, by SIGKILL."""
    done, write = 0, os.write

    def half(descriptor: int, data: bytes) -> int:
        nonlocal done
        done += 1
        if done == step:
            write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data)

    os.write = half


def log_ids(workspace: Workspace) -> list[int]:
    return sorted(pq.read_table(workspace.events)["event_id"].to_pylist())


def check(workspace: Workspace, acknowledged: Path) -> bool:
    """After a kill: all that was acknowledged is there. Whether the kill came before its fold."""
    told = {int(line) for line in acknowledged.read_text().split()}
    behind = not told <= set(log_ids(workspace))
    fold(workspace)
    ids = log_ids(workspace)
    assert told <= set(ids), (told, ids)
    assert len(ids) == len(set(ids)), ids
    manifest = read_manifest(workspace.tracks.parent, kind="tables", made_by="ingest")
    assert manifest.rows["events"] == len(ids)
    assert {f"events/{path.name}" for path in workspace.events.iterdir()} == set(manifest.files)
    work(workspace)
    final = [event["event_id"] for event in SOURCE_EVENTS] + [101, 102, 103, 104, FORGOTTEN]
    assert log_ids(workspace) == sorted(final)
    assert not list(journal_folder(workspace).rglob("*.partial"))
    assert not list((journal_folder(workspace) / "sealed").iterdir())
    return behind


def main(folder: Path) -> None:
    pristine = Workspace(folder / "pristine")
    assert forked(lambda: prepare(pristine)) == 0
    kills = behind = 0
    for kill in (kill_before, lambda step, root: half_writes(step)):
        for step in count(1):
            workspace = Workspace(folder / f"killed-{step}")
            shutil.copytree(pristine.root, workspace.root)
            acknowledged = folder / "acknowledged"
            acknowledged.write_text("")

            def killed(
                kill=kill, step=step, workspace=workspace, acknowledged=acknowledged
            ) -> None:
                kill(step, workspace.root)
                work(workspace, acknowledged)

            status = forked(killed)
            if status == 0:
                break
            assert status == signal.SIGKILL, status
            kills += 1
            behind += check(workspace, acknowledged)
            shutil.rmtree(workspace.root)
        shutil.rmtree(workspace.root)
    print(kills, behind)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
