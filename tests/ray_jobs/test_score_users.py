"""Candidates of all users against brute force, second runs, kills, errors as rows."""

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_repo import schema
from feature_repo.artifacts import read_manifest
from feature_repo.errors import ArtifactError, InputError
from feature_repo.store import open_store, read_online
from feature_repo.workspace import Workspace
from ray_jobs import candidate_parts, score_users, user_scoring
from ray_jobs.forget import ForgetOptions, forget
from ray_jobs.publish import publish
from ray_jobs.score_users import ScoreUsersOptions
from ray_jobs.sequences import SequenceOptions, sequences
from tests.event_logs import event, write_events
from tests.generations import write_generation
from tests.retrievers import brute_force, write_retriever
from tests.trained import TRACKS, learnable_log

KEPT, TOP = 10, 15
"""Listens of a user in the feature store; candidates of each."""
STRANGER = 900
"""Has heard nothing but a track that the model does not know."""
LOG = [*learnable_log(events=600), event(9001, STRANGER, TRACKS, 5.0, "play")]
KNOWN = [track for track in range(1, TRACKS) if track % 7]


@pytest.fixture(scope="module")
def scored_world(tmp_path_factory):
    """A published workspace and a model of most of its tracks."""
    workspace = Workspace(tmp_path_factory.mktemp("scoring") / "workspace")
    write_events(workspace, LOG)
    write_generation(workspace, "gen-cccccccccccc", TRACKS)
    sequences(workspace, SequenceOptions(length=KEPT))
    publish(workspace)
    return workspace, write_retriever(workspace, KNOWN)


@pytest.fixture
def world(scored_world):
    """The same without any candidates."""
    workspace, model_id = scored_world
    view = schema.candidates_view_name(model_id)
    for path in (workspace.feature_source(view), workspace.root / "candidates"):
        shutil.rmtree(path, ignore_errors=True)
    (workspace.root / "materialization" / f"{view}.json").unlink(missing_ok=True)
    return workspace, ScoreUsersOptions(model_id=model_id, top=TOP, batch_size=7)


@pytest.fixture
def in_process(monkeypatch):
    """Scores without Ray, a part a block; returns the users of each run's blocks."""
    runs: list[list[list[int]]] = []

    def blocks(histories, scoring, *, actors, batch_size):
        actor = user_scoring.ScoreActor(pickle.loads(pickle.dumps(scoring)))  # noqa: S301
        runs.append([])
        for wave in user_scoring._waves(histories):
            for start in range(0, wave.num_rows, batch_size):
                block = wave.slice(start, batch_size)
                runs[-1].append(block[schema.USER_ID].to_pylist())
                yield actor(block)

    monkeypatch.setattr(score_users, "scored_blocks", blocks)
    monkeypatch.setattr(score_users, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(candidate_parts, "PART_EVERY_S", 0.0)
    return runs


def histories(log):
    """By user: the last listens, oldest first, by a sort of the log."""
    found: dict[int, list[tuple]] = {}
    for row in log:
        if row["action"] != "skip":
            key = (row["event_timestamp"], row["event_id"], row["track_id"])
            found.setdefault(row["user_id"], []).append(key)
    return {user: [track for *_, track in sorted(own)[-KEPT:]] for user, own in found.items()}


def strangers(log) -> set[int]:
    """Users of whose tracks the model knows none."""
    return {user for user, tracks in histories(log).items() if not set(tracks) & set(KNOWN)}


def rows_of(workspace, model_id):
    """Of the published source, by user; fails on a user with two rows."""
    folder = workspace.feature_source(schema.candidates_view_name(model_id))
    rows = [row for part in folder.glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    by_user = {row["user_id"]: row for row in rows}
    assert (
        len(by_user)
        == len(rows)
        == read_manifest(folder, kind="feature_source", made_by="score-users").rows["rows"]
    )
    return by_user


def check(workspace, model_id, log=LOG):
    """Every row of the source and of the online store is what brute force says."""
    expected, rows = brute_force(workspace, model_id), rows_of(workspace, model_id)
    heard = histories(log)
    assert set(rows) == set(heard)
    view = schema.candidates_view_name(model_id)
    columns = (schema.CANDIDATE_TRACK_IDS, schema.CANDIDATE_SCORES, schema.CANDIDATE_MODEL)
    users = sorted(heard)
    online = read_online(
        open_store(workspace), schema.USER_ID, users, [f"{view}:{name}" for name in columns]
    )
    for place, user in enumerate(users):
        row = rows[user]
        assert [online[name][place] or [] for name in columns] == [row[name] for name in columns]
        if user in strangers(log):
            assert (row[schema.CANDIDATE_TRACK_IDS], row["error"]) == (
                [],
                "no listen of a track that the model knows",
            )
            continue
        tracks, scores = expected(heard[user])
        assert row["error"] is None
        assert not set(row[schema.CANDIDATE_TRACK_IDS]) & set(heard[user])
        np.testing.assert_allclose(row[schema.CANDIDATE_SCORES], scores[:TOP], atol=1e-5)
        score_of = dict(zip(tracks, scores, strict=True))
        own = [score_of[track] for track in row[schema.CANDIDATE_TRACK_IDS]]
        np.testing.assert_allclose(own, scores[:TOP], atol=1e-5)  # near ties may change places


def test_every_user_gets_the_best_tracks_of_all(world, in_process):
    workspace, options = world
    answer = score_users.score_users(workspace, options)
    check(workspace, options.model_id)
    users, errors = len(histories(LOG)), len(strangers(LOG))
    assert STRANGER in strangers(LOG)
    assert (answer["users"], answer["scored"], answer["online"]) == (users, users, users)
    assert answer["errors"] == errors < users / 4
    assert answer["view"] == schema.candidates_view_name(options.model_id)
    assert answer["users_per_second"] > 0
    assert not (workspace.root / "candidates" / options.model_id).exists()


def test_a_second_run_scores_those_who_listened_since(world, in_process, scored_world):
    workspace, options = world
    score_users.score_users(workspace, options)
    before = rows_of(workspace, options.model_id)
    assert score_users.score_users(workspace, options)["scored"] == 0
    assert len(in_process) == 1  # Ray was not even started
    assert rows_of(workspace, options.model_id) == before
    more = [
        *LOG,
        event(9002, 3, KNOWN[0], 60 * 24 * 30, "complete"),
        event(9003, 901, KNOWN[1], 60 * 24 * 30, "play"),
    ]
    write_events(workspace, more)
    sequences(workspace, SequenceOptions(length=KEPT))
    publish(workspace)  # the candidates go with the rest
    try:
        assert score_users.score_users(workspace, options)["scored"] == 2
        assert sorted(user for block in in_process[1] for user in block) == [3, 901]
        check(workspace, options.model_id, more)
    finally:
        write_events(workspace, LOG)
        sequences(workspace, SequenceOptions(length=KEPT))
        publish(workspace)
    # User 901 is gone again, and so is the row, online too.
    assert score_users.score_users(workspace, options)["scored"] == 1
    check(workspace, options.model_id)
    view = schema.candidates_view_name(options.model_id)
    name = f"{view}:{schema.CANDIDATE_MODEL}"
    online = read_online(open_store(workspace), schema.USER_ID, [901], [name])
    assert online[schema.CANDIDATE_MODEL] == [None]


def test_another_number_of_candidates_is_another_job(world, in_process):
    workspace, options = world
    users = score_users.score_users(workspace, options)["scored"]
    shorter = ScoreUsersOptions(model_id=options.model_id, top=3, batch_size=100)
    assert score_users.score_users(workspace, shorter)["scored"] == users
    rows = rows_of(workspace, options.model_id).values()
    assert {len(row[schema.CANDIDATE_SCORES]) for row in rows} == {0, 3}


def test_a_run_that_fails_midway_is_gone_on_with(world, in_process, monkeypatch):
    workspace, options = world
    whole = score_users.scored_blocks

    def cut_off(*arguments, **settings):
        for number, block in enumerate(whole(*arguments, **settings)):
            if number == 3:
                raise KeyboardInterrupt
            yield block

    with monkeypatch.context() as patch:
        patch.setattr(score_users, "scored_blocks", cut_off)
        with pytest.raises(KeyboardInterrupt):
            score_users.score_users(workspace, options)
    view = schema.candidates_view_name(options.model_id)
    assert not workspace.feature_source(view).exists()
    answer = score_users.score_users(workspace, options)
    assert answer["scored"] == answer["users"] - 3 * options.batch_size
    check(workspace, options.model_id)


def test_a_changed_part_is_scored_again(world, in_process):
    workspace, options = world
    users = score_users.score_users(workspace, options)["users"]
    folder = workspace.feature_source(schema.candidates_view_name(options.model_id))
    part = sorted(folder.glob("*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:-1])
    assert score_users.score_users(workspace, options)["scored"] == users
    check(workspace, options.model_id)


def test_a_forgotten_user_has_no_candidates(world, in_process, tmp_path):
    workspace, options = world
    score_users.score_users(workspace, options)
    copy = Workspace(tmp_path / "workspace")
    shutil.copytree(workspace.root, copy.root)
    shutil.copytree(
        workspace.root.with_name("workspace-base-0"), copy.root.with_name("workspace-base-0")
    )
    publish(copy)  # its views name the original's sources
    forget(copy, ForgetOptions(user="3"))
    assert 3 not in rows_of(copy, options.model_id)
    name = f"{schema.candidates_view_name(options.model_id)}:{schema.CANDIDATE_TRACK_IDS}"
    online = read_online(open_store(copy), schema.USER_ID, [3, 4], [name])
    assert [bool(tracks) for tracks in online[schema.CANDIDATE_TRACK_IDS]] == [False, True]
    assert score_users.score_users(copy, options)["scored"] == 0


def test_what_is_no_retriever_is_refused(world, in_process):
    workspace, options = world
    with pytest.raises(ArtifactError, match="no model model-none"):
        score_users.score_users(workspace, ScoreUsersOptions(model_id="model-none"))
    for name in ("top", "actors", "batch_size"):
        with pytest.raises(InputError, match=f"{name}=0: expected at least 1"):
            ScoreUsersOptions(model_id="model-none", **{name: 0})
    with (
        candidate_parts.work_folder(workspace, options.model_id),
        pytest.raises(InputError, match="another run is writing"),
    ):
        score_users.score_users(workspace, options)


@pytest.mark.slow
def test_a_killed_driver_loses_and_doubles_no_user(world, ray_local):
    import ray

    workspace, options = world
    driver = """
import sys
from pathlib import Path
from feature_repo.workspace import Workspace
from ray_jobs import candidate_parts
from ray_jobs.score_users import ScoreUsersOptions, score_users
candidate_parts.PART_EVERY_S = 0.0
options = ScoreUsersOptions(model_id=sys.argv[2], top=15, actors=1, batch_size=1)
score_users(Workspace(Path(sys.argv[1])), options)
"""
    folder = workspace.root / "candidates" / options.model_id
    with (workspace.root.parent / "driver.log").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", driver, str(workspace.root), options.model_id],
            env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("part-*.parquet"))) < 3:
        assert process.poll() is None, Path(output.name).read_text()
        assert time.monotonic() < deadline, Path(output.name).read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = sum(pq.read_metadata(part).num_rows for part in folder.glob("part-*.parquet"))
    assert 3 <= done < len(histories(LOG))
    answer = score_users.score_users(workspace, options)
    assert answer["scored"] == answer["users"] - done
    check(workspace, options.model_id)
