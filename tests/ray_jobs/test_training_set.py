"""Training sets: what is joined, in which order it is written, and how the stream is cut."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import schema
from feature_repo.workspace import Workspace
from ray_jobs.impressions import ImpressionOptions, impressions
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.training_set import TrainingSetOptions, _write_files, training_set
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


def test_each_impression_has_the_history_of_its_moment(tmp_path):
    workspace = Workspace(tmp_path)
    events = learnable_log(events=800)
    write_events(workspace, events)
    write_generation(workspace, "gen-eeeeeeeeeeee", TRACKS)
    sequences(workspace, SequenceOptions(length=LENGTH))
    publish(workspace)
    options = ImpressionOptions(seed=3)
    manifest = training_set(workspace, TrainingSetOptions(impressions=options))
    assert manifest.info["history_length"] == LENGTH
    folder = workspace.training_sets / manifest.id
    asked = impressions(workspace.events, options)
    written = {
        "train": pq.read_table(sorted(folder.glob("train-*.parquet"))),
        "validation": pq.read_table(folder / "validation.parquet"),
        "test": pq.read_table(folder / "test.parquet"),
    }
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
