"""The log of served reads: what is sampled, what is written, what is dropped and counted."""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.errors import InputError
from feature_repo.read_log import (
    READ_AT,
    ReadLog,
    ReadLogOptions,
    sampled,
    served_reads,
)
from feature_repo.stores.packed_columns import KINDS, Columns, column_from_arrow
from feature_repo.workspace import Workspace

NOBODY = None


def read_log(folder, **options) -> ReadLog:
    return ReadLog(Workspace(folder), "view", "user_id", ReadLogOptions(**{"share": 1.0} | options))


def answer(*rows) -> Columns:
    """What the online store answers: (id, event_us or NOBODY, plays, tracks, name) of each."""
    ids, event_us, *features = zip(*rows, strict=True)
    found = np.array([moment is not NOBODY for moment in event_us])
    kinds = {"plays": "INT64", "tracks": "INT64_LIST", "name": "STRING"}
    return Columns(
        ids_N=np.array(ids),
        columns={
            f"view:{name}": column_from_arrow(KINDS[kind], pa.array(values, KINDS[kind].arrow))
            for (name, kind), values in zip(kinds.items(), features, strict=True)
        },
        found={"view": found},
        event_us={"view": np.array([moment or 0 for moment in event_us])},
    )


def of(*ids) -> Columns:
    """An answer about these ids, each with its own values."""
    return answer(*((n, n, n, [n], str(n)) for n in ids))


def logged(folder) -> pa.Table:
    parts = sorted(served_reads(Workspace(folder), "view").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts])


def test_what_was_served_is_what_is_read_back(tmp_path):
    log = read_log(tmp_path)
    log.record(answer((7, 1_000_000, 3, [5, 6], "a")), 1_000_001)
    rows = answer((8, NOBODY, None, None, None), (9, 5, 0, [], ""))
    log.record(rows, np.array([1_000_002, 1_000_003]))
    log.close()
    table = logged(tmp_path)
    assert table["user_id"].to_pylist() == [7, 8, 9]
    assert table[READ_AT].cast("int64").to_pylist() == [1_000_001, 1_000_002, 1_000_003]
    assert table["event_timestamp"].cast("int64").to_pylist() == [1_000_000, None, 5]
    assert table["plays"].to_pylist() == [3, None, 0]
    assert table["tracks"].to_pylist() == [[5, 6], None, []]
    assert table["tracks"].type == pa.list_(pa.int64())
    assert table["name"].to_pylist() == ["a", None, ""]
    assert table["name"].type == pa.string()
    assert (log.written, log.dropped) == (3, 0)


def test_flush_waits_until_the_reads_are_on_the_disk(tmp_path):
    log = read_log(tmp_path)
    for number in range(3):
        log.record(of(number), number)
        log.flush()
        assert logged(tmp_path)["user_id"].to_pylist() == list(range(number + 1))
    log.close()


def test_a_sample_is_a_share_of_the_entities_and_always_the_same_ones():
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 200_000)
    for dense in (ids, np.arange(-100_000, 100_000)):
        tenth, half = sampled(dense, 0.1), sampled(dense, 0.5)
        assert tenth.mean() == pytest.approx(0.1, abs=0.004)
        assert half.mean() == pytest.approx(0.5, abs=0.006)
        assert half[tenth].all()
        assert sampled(dense, 1.0).all()
        np.testing.assert_array_equal(sampled(dense[::-1], 0.1), tenth[::-1])


def test_a_log_keeps_its_share_of_each_answer(tmp_path):
    log = read_log(tmp_path, share=0.3)
    for start in range(0, 50, 10):
        log.record(of(*range(start, start + 10)), start)
    log.close()
    expected = np.flatnonzero(sampled(np.arange(50), 0.3)).tolist()
    assert 0 < len(expected) < 50
    table = logged(tmp_path)
    assert table["user_id"].to_pylist() == table["plays"].to_pylist() == expected
    assert table["tracks"].to_pylist() == [[n] for n in expected]
    assert log.written == len(expected)


def test_many_threads_lose_nothing(tmp_path):
    log = read_log(tmp_path)

    def serve(first):
        for number in range(first, first + 500):
            log.record(of(number), number)

    threads = [threading.Thread(target=serve, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    expected = [1000 * n + m for n in range(4) for m in range(500)]
    assert sorted(logged(tmp_path)["plays"].to_pylist()) == expected
    assert (log.written, log.dropped) == (2000, 0)


def test_a_full_buffer_drops_and_counts(tmp_path):
    log = read_log(tmp_path, max_buffered_reads=5)
    log.record(of(*range(6)), 0)
    log.close()
    assert (log.written, log.dropped) == (0, 6)
    log.record(of(1, 2), 0)  # after the end
    assert (log.written, log.dropped) == (0, 8)


def test_a_disk_that_takes_nothing_costs_reads_not_requests(tmp_path, caplog):
    folder = served_reads(Workspace(tmp_path), "view")
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    log = read_log(tmp_path)
    log.record(of(1), 1)
    log.flush()
    log.close()
    assert (log.written, log.dropped) == (0, 1)
    assert "lost 1 answers" in caplog.text


def test_the_oldest_parts_go_when_the_folder_is_full(tmp_path):
    log = read_log(tmp_path, max_folder_bytes=9000)
    for number in range(20):
        log.record(of(number), number)
        log.flush()
    log.close()
    kept = logged(tmp_path)["user_id"].to_pylist()
    assert 1 <= len(kept) < 20
    assert kept == list(range(20 - len(kept), 20))
    folder = served_reads(Workspace(tmp_path), "view")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 9000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "share is 0; expected a share above 0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"share": 1, "max_buffered_reads": 0}, "max_buffered_reads is 0"),
        ({"share": 1, "max_folder_bytes": 0}, "max_folder_bytes is 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        ReadLogOptions(**options)
