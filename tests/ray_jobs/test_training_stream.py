"""The training stream: every row once, in an order that the seed decides, from any batch on."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.training_stream import StreamPlace, global_batches


def write(folder, sizes):
    """Files of so many rows; row numbers go on from file to file."""
    ends = np.cumsum(sizes)
    for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        table = pa.table({"row": np.arange(end - size, end)})
        pq.write_table(table, folder / f"train-{number:05d}.parquet")
    return {
        int(row): f"train-{number:05d}.parquet"
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
        for row in range(end - size, end)
    }


def batches(folder, *, batch_size, first=0, seed=3, epoch=1):
    place = StreamPlace(
        seed=seed, epoch=epoch, batch_size=batch_size, rank=0, world_size=1, first_batch=first
    )
    return [(rows["row"].to_pylist(), files) for rows, files in global_batches(folder, place)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(1, 25), st.data())
def test_it_can_be_entered_at_any_batch(tmp_path_factory, sizes, batch_size, data):
    folder = tmp_path_factory.mktemp("stream")
    file_of = write(folder, sizes)
    whole = batches(folder, batch_size=batch_size)
    rows = [row for batch, _ in whole for row in batch]
    assert sorted(rows) == list(range(sum(sizes)))
    assert [len(batch) for batch, _ in whole[:-1]] == [batch_size] * (len(whole) - 1)
    for batch, files in whole:
        assert {file_of[row] for row in batch} <= set(files)
    first = data.draw(st.integers(0, len(whole)))
    later = batches(folder, batch_size=batch_size, first=first)
    assert [batch for batch, _ in later] == [batch for batch, _ in whole[first:]]


def test_seed_and_epoch_decide_the_order(tmp_path):
    write(tmp_path, [50, 50, 20])
    orders = {
        tuple(row for batch, _ in batches(tmp_path, batch_size=7, **place) for row in batch)
        for place in ({}, {}, {"seed": 4}, {"epoch": 2})
    }
    assert len(orders) == 3


def test_files_whose_rows_are_done_are_not_read(tmp_path):
    write(tmp_path, [10, 10, 10])
    last = {row for batch, _ in batches(tmp_path, batch_size=10)[2:] for row in batch}
    for number in range(3):
        path = tmp_path / f"train-{number:05d}.parquet"
        if number * 10 not in last:  # the magic number goes: only the footer can be read
            path.write_bytes(b"gone" + b"\0" * 40 + path.read_bytes()[44:])
    assert {row for batch, _ in batches(tmp_path, batch_size=10, first=2) for row in batch} == last
    with pytest.raises((pa.ArrowInvalid, OSError)):
        batches(tmp_path, batch_size=10, first=1)
