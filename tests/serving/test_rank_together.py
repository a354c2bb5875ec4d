"""Rankings scored together are those scored alone, from fewer passes; an error is each one's."""

import asyncio

import numpy as np
import pytest

from feature_repo.errors import StoreUnavailableError
from serving.rank_together import MAX_CANDIDATES_TOGETHER, RankTogether
from serving.ranker import ReleaseRanker
from serving.releases import live_release, make_release

REQUESTS = [(1, [5, 3, 8, 1]), (987_654, [1, 2]), (2, [777]), (17, [4, 777, 4]), (1, [30])]


@pytest.fixture(scope="module")
def ranker(trained):
    workspace, _ = trained
    make_release(workspace)
    return ReleaseRanker(workspace, live_release(workspace))


@pytest.fixture
def passes(ranker):
    """The rows of each forward pass."""
    rows = []
    handle = ranker._model.register_forward_hook(lambda _, args, scores: rows.append(len(scores)))
    yield rows
    handle.remove()


def together(ranker, requests):
    async def run():
        ranks = RankTogether(ranker)
        return await asyncio.gather(*(ranks.rank(*one) for one in requests))

    return asyncio.run(run())


def test_scored_together_as_alone(ranker, passes):
    alone = [ranker.rank(*one) for one in REQUESTS]
    passes.clear()
    found = together(ranker, REQUESTS)
    assert passes == [8]
    for one, other in zip(found, alone, strict=True):
        assert one.track_ids == other.track_ids
        assert one.user_known == other.user_known
        assert one.unknown_track_ids == other.unknown_track_ids
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
    assert together(ranker, REQUESTS[2:3])[0].track_ids == []


def test_a_pass_has_an_upper_size(ranker, passes):
    many = list(range(MAX_CANDIDATES_TOGETHER - 1))
    known = int(ranker._items.knows(np.array(many)).sum())
    together(ranker, [(1, [1]), (1, many), (2, many), (2, [1, 2])])
    assert passes == [1 + known, known, 2]


def test_an_error_is_raised_in_every_request_of_the_pass(ranker):
    class Away:
        release = ranker.release

        def rank_together(self, requests):
            raise StoreUnavailableError("away")

    async def run():
        ranks = RankTogether(Away())
        return await asyncio.gather(ranks.rank(1, [1]), ranks.rank(2, [1]), return_exceptions=True)

    assert [str(error) for error in asyncio.run(run())] == ["away", "away"]


def test_a_client_that_is_gone_keeps_nobody_waiting(ranker):
    async def run():
        ranks = RankTogether(ranker)
        first, second = (asyncio.create_task(ranks.rank(1, [n])) for n in (1, 2))
        await asyncio.sleep(0)
        first.cancel()
        return (await second).track_ids

    assert asyncio.run(run()) == [2]
