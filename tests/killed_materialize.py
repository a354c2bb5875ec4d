"""Runs `materialize` over and over, killed one step later each time; then once more, to its end.

    python -m tests.killed_materialize FOLDER [--redis] [--every STEPS]

A step is whatever changes the disk from Python (kill_steps.py), and each side of every batch that
goes to the online store. After each kill the watermark has to be the one before or the one after,
and the next run has to bring the online store into the state that a run in peace does. The last
line says at how many steps that was done.
"""

import argparse
import os
import shutil
import signal
from itertools import count
from pathlib import Path

from feature_repo.workspace import Workspace
from tests.kill_steps import forked, kill_before
from tests.servers import RedisServer
from tests.view_sources import (
    PLAIN,
    SEQUENCE,
    apply_views,
    at,
    expected_state,
    listen,
    online_state,
    packed_settings,
    plain_row,
    random_rows,
    until,
    write_both,
)

HOURS = 24.0 * 6
END = at(HOURS + 2)


def log(first_hours: float | None = None) -> tuple[list, list]:
    """The whole source, or what of it was there at the first run: late rows came after that."""
    plain, listens = random_rows(5, 12, 160, HOURS)
    listens.append(listen(10_000, 1, HOURS + 1))
    if first_hours is not None:
        return until(plain, first_hours), until(listens, first_hours)
    late = [listen(20_000 + n, n % 12 + 1, 40 + n) for n in range(5)]
    return [*plain, plain_row(99, 41, 7)], [*listens, *late]


def materialize_small(workspace: Workspace) -> None:
    from ray_jobs.materialize import MaterializeOptions, materialize

    materialize(workspace, MaterializeOptions(chunk_rows=40))


def kill_around_batches(step: int, root: Path) -> None:
    """As kill_before; a batch to the online store opens a file, which is a step, on either side."""
    from feature_repo.stores import packed_redis, packed_sqlite

    kill_before(step, root)

    def step_here() -> None:
        os.close(os.open(root / ".step", os.O_WRONLY | os.O_CREAT))

    for store in (packed_sqlite.PackedSqliteOnlineStore, packed_redis.PackedRedisOnlineStore):
        for name in ("_put", "change_rows"):
            method = getattr(store, name)

            def around(self, *arguments, method=method):
                step_here()
                method(self, *arguments)
                step_here()

            setattr(store, name, around)


def marks(workspace: Workspace) -> dict[str, str]:
    from ray_jobs.watermarks import read_watermark, watermark_names

    return {name: read_watermark(workspace, name).watermark for name in watermark_names(workspace)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--redis", action="store_true")
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    import ray_jobs.materialize  # noqa: F401  once, not in every fork

    redis = None
    if options.redis:
        (options.folder / "redis").mkdir()
        redis = RedisServer(options.folder / "redis", durable=True).start()
    try:
        print(kill_everywhere(options.folder, redis, options.every))
    finally:
        if redis is not None:
            redis.stop()


def kill_everywhere(folder: Path, redis: RedisServer | None, every: int) -> int:
    """Kills before step 1, 1 + every, ...; returns how many kills that were."""
    # The registry holds the sources' paths: every try happens in the same folder.
    workspace, pristine = Workspace(folder / "workspace"), folder / "before"
    redis_folder, redis_pristine = folder / "redis", folder / "redis-before"
    settings = packed_settings(redis.connection_string if redis else None)

    def prepare() -> None:
        write_both(workspace, *log(80.0))
        apply_views(workspace, settings)
        materialize_small(workspace)
        write_both(workspace, *log())

    def prepare_again() -> None:
        """The same online rows as at first: Redis is no folder that could be copied back."""
        if redis is not None:
            redis.kill()
            shutil.rmtree(redis_folder)
            shutil.copytree(redis_pristine, redis_folder)
            redis.start()
        shutil.rmtree(workspace.root)
        shutil.copytree(pristine, workspace.root)

    assert forked(prepare) == 0
    shutil.copytree(workspace.root, pristine)
    if redis is not None:
        redis.kill()
        shutil.copytree(redis_folder, redis_pristine)
        redis.start()
    killed = 0
    for step in count(1, every):
        prepare_again()

        def run(step: int = step) -> None:
            kill_around_batches(step, workspace.root)
            materialize_small(workspace)

        status = forked(run)
        if status == 0:
            break
        assert status == signal.SIGKILL, status
        killed += 1

        def look_and_run_again() -> None:
            from feature_repo.store import open_store

            first = {view: at(HOURS) for view in (PLAIN, SEQUENCE)}
            for view, mark in marks(workspace).items():
                assert mark == END_MARK or mark < first[view].isoformat(), (view, mark)
            materialize_small(workspace)
            assert online_state(open_store(workspace)) == expected_state(*log(), END)
            assert set(marks(workspace).values()) == {END_MARK}
            left = [path.name for path in (workspace.root / "materialization").glob("*progress*")]
            assert left == [], left

        assert forked(look_and_run_again) == 0, f"after a kill before step {step}"
    return killed


END_MARK = max(row["event_timestamp"] for row in log()[1]).isoformat()

if __name__ == "__main__":
    main()
