"""Training sets: what is joined, in which order it is written, and how the stream is cut."""

import math
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.number_rows import CONTEXT
from ray_jobs.feature_rows import _side_by_side
from ray_jobs.impressions import ImpressionOptions, impressions
from ray_jobs.number_features import FEATURE_GROUPS, NUMBERS, number_names
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.training_set import NUMBERS_FILE, TrainingSetOptions, _write_files, training_set
from tests.event_logs import write_events
from tests.generations import write_generation
from tests.trained import TRACKS, learnable_log

LENGTH = 4


def table(rows):
    return pa.table({"row": pa.array(rows, type=pa.int64())})


@pytest.mark.parametrize("cuts", [[7], [3, 4], [1, 2, 3, 1], [0, 7, 0], [2, 0, 5]])
@pytest.mark.parametrize("parts", [[range(7)], [range(5), range(5, 5), range(5, 7)]])
def test_a_stream_is_cut_into_files_of_so_many_rows(tmp_path, cuts, parts):
    files = {f"{number}.parquet": rows for number, rows in enumerate(cuts)}
    _write_files((table(part) for part in parts), files, tmp_path)
    ends = np.cumsum(cuts)
    for name, rows, end in zip(files, cuts, ends, strict=True):
        found = pq.read_table(tmp_path / name)["row"].to_pylist()
        assert found == list(range(end - rows, end))


@pytest.mark.parametrize(("rows", "said"), [(8, "lacks 1 rows for"), (6, "gave 1 rows more")])
def test_lost_or_added_rows_are_an_error(tmp_path, rows, said):
    with pytest.raises(RuntimeError, match=said):
        _write_files(iter([table(range(7))]), {"all.parquet": rows}, tmp_path)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A published workspace, and the events in its log."""
    workspace = Workspace(tmp_path_factory.mktemp("published"))
    events = learnable_log(events=800)
    write_events(workspace, events)
    write_generation(workspace, "gen-eeeeeeeeeeee", TRACKS)
    sequences(workspace, SequenceOptions(length=LENGTH))
    publish(workspace)
    return workspace, events


def written_rows(workspace, manifest):
    folder = workspace.training_sets / manifest.id
    return {
        "train": pq.read_table(sorted(folder.glob("train-*.parquet"))),
        "validation": pq.read_table(folder / "validation.parquet"),
        "test": pq.read_table(folder / "test.parquet"),
    }


def test_each_impression_has_the_history_of_its_moment(published):
    workspace, events = published
    options = ImpressionOptions(seed=3)
    manifest = training_set(workspace, TrainingSetOptions(impressions=options))
    assert manifest.info["history_length"] == LENGTH
    asked = impressions(workspace.events, options)
    written = written_rows(workspace, manifest)
    for part, rows in written.items():
        expected = asked[asked["part"] == part]["impression_id"].to_numpy()
        if part == "train":
            expected = np.random.default_rng(options.seed).permutation(expected)
        assert manifest.rows[part] == len(expected)
        assert rows["impression_id"].to_pylist() == expected.tolist()
    listens = [e for e in events if e["action"] in schema.LISTEN_ACTIONS]
    for row in pa.concat_tables(written.values()).to_pylist():
        seen = [
            e
            for e in listens
            if e["user_id"] == row["user_id"]
            and max(e["event_timestamp"], e["ingested_at"] or e["event_timestamp"])
            < row["event_timestamp"]
        ]
        seen.sort(key=lambda e: (e["event_timestamp"], e["event_id"]))
        history = row[schema.SEQUENCE_TRACK_IDS]
        assert (history or []) == [e["track_id"] for e in seen[-LENGTH:]]
        assert (history is None) == (not seen)


def counted(events, entity, row):
    """The windowed counts of one user or track at an impression, by a walk over the log."""
    midnight = row["event_timestamp"].replace(hour=0, minute=0, second=0, microsecond=0)
    kinds = {
        "plays": lambda action: action != "skip",
        "completes": lambda action: action == "complete",
        "skips": lambda action: action == "skip",
        "favourites": lambda action: action == "favourite",
    }
    found = {}
    for kind, wanted in kinds.items():
        for days in schema.STATS_WINDOWS_DAYS:
            found[f"{entity}_{kind}_{days}d"] = sum(
                midnight - timedelta(days=days)
                <= max(e["event_timestamp"], e["ingested_at"] or e["event_timestamp"])
                < midnight
                for e in events
                if e[f"{entity}_id"] == row[f"{entity}_id"] and wanted(e["action"])
            )
    return found


def test_each_impression_has_the_numbers_of_its_moment(published):
    workspace, events = published
    manifest = training_set(workspace, TrainingSetOptions(features=("context", "track", "user")))
    names = manifest.info["numbers"]
    assert names == list(number_names(FEATURE_GROUPS))
    rows = pa.concat_tables(written_rows(workspace, manifest).values())
    assert rows[NUMBERS].type == pa.list_(pa.float32(), len(names))
    listens = [e for e in events if e["action"] in schema.LISTEN_ACTIONS]
    for row in rows.take(np.arange(0, rows.num_rows, 7)).to_pylist():
        moment = row["event_timestamp"]
        seen = [
            e["event_timestamp"]
            for e in listens
            if e["user_id"] == row["user_id"]
            and max(e["event_timestamp"], e["ingested_at"] or e["event_timestamp"]) < moment
        ]
        day = (moment - moment.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
        expected = counted(events, "user", row) | counted(events, "track", row)
        expected |= {
            "hour_sin": math.sin(2 * math.pi * day / 86_400),
            "hour_cos": math.cos(2 * math.pi * day / 86_400),
            "weekday_sin": math.sin(2 * math.pi * moment.weekday() / 7),
            "weekday_cos": math.cos(2 * math.pi * moment.weekday() / 7),
            "history_length": min(LENGTH, len(seen)),
            "log_since_listen": math.log1p((moment - max(seen)).total_seconds())
            if seen
            else math.nan,
            "without_listen": int(not seen),
        }
        found = dict(zip(names, row[NUMBERS], strict=True))
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)


def test_statistics_are_those_of_the_training_part_alone(published):
    workspace, _ = published
    manifest = training_set(workspace, TrainingSetOptions(features=FEATURE_GROUPS))
    train = np.array(written_rows(workspace, manifest)["train"][NUMBERS].to_pylist(), dtype=float)
    statistics = load_file(workspace.training_sets / manifest.id / NUMBERS_FILE)
    counts = [not name.startswith(CONTEXT) for name in manifest.info["numbers"]]
    train[:, counts] = np.log1p(train[:, counts])
    np.testing.assert_allclose(statistics["mean_N"], np.nanmean(train, 0), rtol=1e-4, atol=1e-6)
    spread = np.nanstd(train, 0)
    np.testing.assert_allclose(statistics["spread_N"], np.where(spread, spread, 1), rtol=1e-4)


def test_the_id_changes_with_the_features_and_not_with_their_order(published):
    workspace, _ = published
    plain = training_set(workspace, TrainingSetOptions())
    assert plain.info["features"] == [f"{schema.USER_SEQUENCE}:{schema.SEQUENCE_TRACK_IDS}"]
    assert (plain.info["numbers"], "features" in plain.options) == ([], False)
    assert NUMBERS not in written_rows(workspace, plain)["train"].column_names
    ids = {
        training_set(workspace, TrainingSetOptions(features=groups)).id
        for groups in [("user",), ("user", "track"), ("track", "user")]
    }
    assert len(ids - {plain.id}) == 2


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (("users",), r"features must be among \('user', 'track', 'context'\), got 'users'"),
        (("user", "user"), r"features must name each group once, got \('user', 'user'\)"),
    ],
)
def test_unknown_feature_groups_are_refused(groups, said):
    with pytest.raises(InputError, match=said):
        TrainingSetOptions(features=groups)


@pytest.mark.parametrize("cuts", [[[7], [3, 4]], [[2, 5], [5, 2], [7]], [[4, 3], [4, 0, 3, 0]]])
def test_streams_cut_at_different_places_come_side_by_side(cuts):
    streams = []
    for lengths in cuts:
        ends = np.cumsum(lengths)
        streams.append([table(range(e - n, e)) for e, n in zip(ends, lengths, strict=True)])
    parts = list(_side_by_side(streams))
    for part in parts:
        assert len({tuple(one["row"].to_pylist()) for one in part}) == 1
    assert [row for part in parts for row in part[0]["row"].to_pylist()] == list(range(7))


def test_streams_of_different_length_are_an_error():
    with pytest.raises(RuntimeError, match="differ in their number"):
        list(_side_by_side([[table(range(7))], [table(range(6))]]))
