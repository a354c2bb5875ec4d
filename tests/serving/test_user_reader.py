"""Nobody waits longer for the store than the budget; reads that wait go together."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from feature_repo.errors import StoreUnavailableError
from serving.user_reader import UserReader

SOON_S = 30.0
AT_ONCE_S = 0.02


class Store:
    """A ranker's `user_rows` whose reads end when the test says so."""

    def __init__(self) -> None:
        self.reads: list[list[int]] = []
        self.asked, self.answer = threading.Semaphore(0), threading.Semaphore(0)
        self.error: Exception | None = None

    def read(self, user_ids):
        self.reads.append(list(user_ids))
        self.asked.release()
        assert self.answer.acquire(timeout=60)
        if self.error is not None:
            raise self.error
        return [f"row of {user_id}" for user_id in user_ids]


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def ranker(store):
    return SimpleNamespace(user_rows=store)


async def row_of(read):
    return (await read).row


async def until_asked(store, times=1):
    for _ in range(times):
        await asyncio.to_thread(store.asked.acquire)


def test_reads_that_wait_go_together(store, ranker):
    async def run():
        reader = UserReader()
        first = asyncio.create_task(row_of(reader.read(ranker, 1, SOON_S)))
        await until_asked(store)
        others = [asyncio.create_task(row_of(reader.read(ranker, n, SOON_S))) for n in (2, 3, 2)]
        await asyncio.sleep(0)
        store.answer.release(2)
        return await asyncio.gather(first, *others)

    assert asyncio.run(run()) == ["row of 1", "row of 2", "row of 3", "row of 2"]
    assert store.reads == [[1], [2, 3, 2]]


def test_a_slow_store_holds_up_nobody_and_is_asked_again_when_it_has_answered(store, ranker):
    async def run():
        reader = UserReader()
        assert await row_of(reader.read(ranker, 1, AT_ONCE_S)) is None
        assert await asyncio.wait_for(row_of(reader.read(ranker, 2, AT_ONCE_S)), 10) is None
        assert store.reads == [[1]]  # the second did not queue behind the first
        store.answer.release()
        while reader._working is not None:
            await asyncio.sleep(0)
        store.answer.release()
        return await row_of(reader.read(ranker, 3, SOON_S))

    assert asyncio.run(run()) == "row of 3"
    assert store.reads == [[1], [3]]


def test_a_request_that_gave_up_is_not_read(store, ranker):
    async def run():
        reader = UserReader()
        first = asyncio.create_task(row_of(reader.read(ranker, 1, SOON_S)))
        await until_asked(store)
        gone = asyncio.create_task(row_of(reader.read(ranker, 2, SOON_S)))
        stays = asyncio.create_task(row_of(reader.read(ranker, 3, SOON_S)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        store.answer.release(2)
        return await asyncio.gather(first, stays)

    assert asyncio.run(run()) == ["row of 1", "row of 3"]
    assert store.reads == [[1], [3]]


def test_an_error_is_no_row_and_is_logged(store, ranker, caplog):
    store.error = StoreUnavailableError("redis://there is away")
    store.answer.release(2)

    async def run():
        reader = UserReader()
        found = await row_of(reader.read(ranker, 1, SOON_S))
        store.error = None
        return found, await row_of(reader.read(ranker, 1, SOON_S))

    assert asyncio.run(run()) == (None, "row of 1")
    assert "redis://there is away" in caplog.text


def test_a_round_trip_is_of_one_release(store, ranker):
    other_store = Store()
    other = SimpleNamespace(user_rows=other_store)
    other_store.answer.release()
    store.answer.release(2)

    async def run():
        reader = UserReader()
        asked = [(ranker, 1), (ranker, 2), (other, 3), (ranker, 4)]
        return await asyncio.gather(*(row_of(reader.read(*one, SOON_S)) for one in asked))

    assert asyncio.run(run()) == ["row of 1", "row of 2", "row of 3", "row of 4"]
    assert store.reads == [[1, 2], [4]]
    assert other_store.reads == [[3]]


def test_a_quick_store_is_asked_without_a_thread_until_it_is_slow(ranker, store):
    threads = []
    read = store.read

    def noted(user_ids):
        threads.append(threading.current_thread() is threading.main_thread())
        return read(user_ids)

    store.read = noted
    store.answer.release(3)

    async def run():
        reader = UserReader()
        first = await row_of(reader.read(ranker, 1, SOON_S))
        reader._is_quick = True  # however busy this machine is
        found = [await row_of(reader.read(ranker, 2, SOON_S))]
        store.error = StoreUnavailableError("gone")
        reader._is_quick = True
        found.append(await row_of(reader.read(ranker, 3, SOON_S)))
        store.error = None
        store.answer.release()
        found.append(await row_of(reader.read(ranker, 4, SOON_S)))
        return [first, *found]

    assert asyncio.run(run()) == ["row of 1", "row of 2", None, "row of 4"]
    assert threads == [False, True, True, False]
