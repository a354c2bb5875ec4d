"""Two threads at one model: who begins while whom waits, and who has it alone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_jobs.encoders.pipeline import EncoderActor
from ray_jobs.encoders.turns import Turns

LONG_S = 30


def test_one_begins_while_another_waits_for_the_device() -> None:
    turns, second_began = Turns(), threading.Event()

    def second() -> Callable[[], str]:
        second_began.set()
        return lambda: "second"

    def first() -> Callable[[], bool]:
        return lambda: second_began.wait(LONG_S)

    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(turns.beside, first)
        assert pool.submit(turns.beside, second).result(LONG_S) == "second"
        assert waiting.result(LONG_S)


def test_beginnings_come_one_at_a_time() -> None:
    turns, at_once, most = Turns(), [0], [0]

    def begin() -> Callable[[], None]:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        threading.Event().wait(0.001)
        at_once[0] -= 1
        return lambda: None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: turns.beside(begin), range(40)))
    assert most == [1]


def test_who_is_alone_waits_for_what_was_begun_and_lets_nobody_begin() -> None:
    turns, order = Turns(), []
    may_end, begun, inside = threading.Event(), threading.Event(), threading.Event()

    def first() -> Callable[[], None]:
        begun.set()

        def finish() -> None:
            may_end.wait(LONG_S)
            order.append("first ended")

        return finish

    def alone() -> None:
        with turns.alone():
            order.append("alone")
            inside.set()
            order.append("alone ended")

    def last() -> Callable[[], None]:
        order.append("last began")
        return lambda: None

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(turns.beside, first)]
        assert begun.wait(LONG_S)
        jobs.append(pool.submit(alone))
        assert not inside.wait(0.05)
        may_end.set()
        assert inside.wait(LONG_S)
        jobs.append(pool.submit(turns.beside, last))
        for job in jobs:
            job.result(LONG_S)
    assert order == ["first ended", "alone", "alone ended", "last began"]


def test_a_beginning_that_fails_does_not_keep_the_others_out() -> None:
    def fails() -> Callable[[], None]:
        raise ZeroDivisionError

    turns = Turns()
    with pytest.raises(ZeroDivisionError):
        turns.beside(fails)
    with pytest.raises(ZeroDivisionError):
        turns.beside(lambda: lambda: 1 // 0)
    with turns.alone():
        pass


@dataclass(frozen=True, kw_only=True)
class DeviceEncoder:
    """Its results come late, and fail late at the odd track."""

    odd: int | None = None
    begun: list[list[int]] = field(default_factory=list)
    waits: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    columns = ("audio_uri",)
    dim = 2

    def prepare(self, tracks: pa.Table) -> pa.Table:
        raise NotImplementedError

    def encode(self, prepared: pa.Table) -> list[np.ndarray | str]:
        raise NotImplementedError

    def begin(self, prepared: pa.Table) -> Callable[[], list[np.ndarray | str]]:
        tracks = prepared["track_id"].to_pylist()
        self.begun.append(tracks)

        def finish() -> list[np.ndarray | str]:
            if len(tracks) > 1:
                self.waits.wait(LONG_S)  # passes only if both chunks have begun
            if self.odd in tracks:
                raise ZeroDivisionError("odd shape")
            return [np.full(2, track, np.float32) for track in tracks]

        return finish


def test_an_actor_has_two_chunks_on_the_device_and_a_late_failure_is_its_rows(
    tmp_path: Path,
) -> None:
    encoder = DeviceEncoder(odd=4)
    actor = EncoderActor(encoder, tmp_path / "todo.parquet")
    chunks = [
        pa.table({"track_id": ids, "error": pa.array([None] * 3, pa.string())})
        for ids in ([1, 2, 3], [4, 5, 6])
    ]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(actor, chunks, timeout=LONG_S))
    rows = pa.concat_tables(found).to_pylist()
    assert [row["track_id"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["error"] for row in rows] == [None] * 3 + [
        "ZeroDivisionError: odd shape",
        None,
        None,
    ]
    assert [row["vector"] for row in rows if row["vector"]] == [[i, i] for i in (1, 2, 3, 5, 6)]
    assert sorted(encoder.begun) == [[1, 2, 3], [4], [4, 5, 6], [5], [6]]
    assert not list(tmp_path.iterdir())
