"""What the comparison with a shadow says, and that it waits for nobody and nobody for it."""

import asyncio
from itertools import combinations

import numpy as np
import pytest

from serving.ranker import Ranking, ReleaseRanker
from serving.releases import live_release, make_release
from serving.shadow import ShadowComparison, ShadowScorer

ALL_TRACKS = range(1, 61)


def by_hand(live, shadow):
    """Mean difference, share of the ten best that both have, Kendall's tau without ties."""
    pairs = list(combinations(range(len(live)), 2))
    alike = sum((live[a] - live[b]) * (shadow[a] - shadow[b]) > 0 for a, b in pairs)

    def best(scores):
        return set(sorted(range(len(scores)), key=lambda n: -scores[n])[:10])

    return (
        sum(abs(a - b) for a, b in zip(live, shadow, strict=True)) / len(live),
        len(best(live) & best(shadow)) / min(10, len(live)),
        (2 * alike - len(pairs)) / len(pairs),
    )


def test_the_summary_is_the_mean_of_what_pairs_and_sets_say():
    random = np.random.default_rng(0)
    comparison = ShadowComparison()
    expected = []
    for _ in range(4):
        live = random.random(25, dtype=np.float32)
        shadow = live + random.normal(0, 0.2, 25).astype(np.float32)
        comparison.add(np.arange(100, 125), live, shadow)
        expected.append(by_hand(live.tolist(), shadow.tolist()))
    summary = comparison.summary()
    assert summary["rankings"] == 4
    found = [summary[name] for name in ("mean_difference", "top_overlap", "rank_agreement")]
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-6)
    assert 0 < summary["rank_agreement"] < 1


def test_equal_and_opposite_orders():
    tracks, scores = np.arange(8), np.linspace(0.1, 0.8, 8)
    same, opposite = ShadowComparison(), ShadowComparison()
    same.add(tracks, scores, scores / 2)
    opposite.add(tracks, scores, scores[::-1].copy())
    assert same.summary()["rank_agreement"] == pytest.approx(1)
    assert opposite.summary()["rank_agreement"] == pytest.approx(-1)


def test_what_has_no_order_has_no_agreement():
    comparison = ShadowComparison()
    names = ("mean_difference", "top_overlap", "rank_agreement")
    assert [comparison.summary()[name] for name in names] == [None, None, None]
    comparison.add(np.array([3]), np.array([0.5]), np.array([0.75]))
    comparison.add(np.array([3, 4]), np.array([0.5, 0.5]), np.array([0.5, 0.25]))
    assert [comparison.summary()[name] for name in names] == [pytest.approx(0.5 / 3), 1, None]


@pytest.fixture
def rankers(world):
    """The live release, and the one that is its shadow."""
    make_release(world.workspace, world.old)
    live = ReleaseRanker(world.workspace, live_release(world.workspace))
    make_release(world.workspace, world.numbers)
    return live, ReleaseRanker(world.workspace, live_release(world.workspace))


async def settled(scorer):
    while scorer._busy:
        await asyncio.sleep(0)


def test_a_shadow_with_other_features_reads_its_own_row(rankers):
    live, shadow = rankers
    scorer = ShadowScorer(shadow)

    async def run():
        ranking = live.rank(1, ALL_TRACKS)
        scorer.offer(1, ranking)
        await settled(scorer)
        return ranking

    ranking = asyncio.run(run())
    scorer.close()
    theirs = shadow.rank(1, ALL_TRACKS)
    of_shadow = dict(zip(theirs.track_ids, theirs.scores, strict=True))
    expected = by_hand(ranking.scores, [of_shadow[track] for track in ranking.track_ids])
    summary = scorer.summary()
    assert (summary["rankings"], summary["skipped"], summary["failed"]) == (1, 0, 0)
    assert summary["mean_difference"] == pytest.approx(expected[0], abs=1e-5)
    assert summary["top_overlap"] == expected[1]
    assert summary["rank_agreement"] == pytest.approx(expected[2], abs=0.01)


def test_an_answer_waits_for_nothing_and_what_comes_meanwhile_is_skipped(rankers):
    live, shadow = rankers
    scorer = ShadowScorer(shadow)

    async def run():
        ranking = live.rank(1, ALL_TRACKS)
        scorer.offer(1, ranking)
        assert not scorer._thread._threads  # nothing began before this step of the loop ended
        scorer.offer(2, ranking)
        scorer.offer(3, ranking)
        await settled(scorer)
        scorer.offer(4, ranking)
        await settled(scorer)

    asyncio.run(run())
    summary = scorer.summary()
    assert (summary["rankings"], summary["skipped"]) == (2, 2)
    scorer.close()


def test_unscored_and_unknown_tracks_are_left_out(rankers):
    live, shadow = rankers
    scorer = ShadowScorer(shadow)
    whole = live.rank(1, [1, 2, 3])

    def ranking(track_ids, scores):
        return Ranking(track_ids=track_ids, scores=scores, user_known=True, unknown_track_ids=[])

    async def run():
        scores = [*whole.scores, 0.9]
        scorer.offer(1, ranking([*whole.track_ids, 777, 5], [*scores, None]))
        await settled(scorer)
        scorer.offer(1, ranking([777, 5], [0.9, None]))
        await settled(scorer)

    asyncio.run(run())
    summary = scorer.summary()
    assert (summary["rankings"], summary["failed"]) == (1, 0)
    theirs = shadow.rank(1, whole.track_ids)
    of_shadow = dict(zip(theirs.track_ids, theirs.scores, strict=True))
    expected = by_hand(whole.scores, [of_shadow[track] for track in whole.track_ids])
    assert summary["mean_difference"] == pytest.approx(expected[0], abs=1e-5)


def test_what_a_shadow_cannot_score_is_counted_and_logged_once(rankers, caplog):
    live, shadow = rankers
    scorer = ShadowScorer(shadow)
    shadow.model = shadow.catalogue = None

    async def run():
        for user in (1, 2):
            scorer.offer(user, live.rank(user, ALL_TRACKS))
            await settled(scorer)

    asyncio.run(run())
    assert (scorer.summary()["rankings"], scorer.summary()["failed"]) == (0, 2)
    assert len(caplog.records) == 1
    assert live.rank(1, ALL_TRACKS).track_ids


def test_an_offer_to_a_closed_shadow_is_dropped(rankers):
    live, shadow = rankers
    scorer = ShadowScorer(shadow)

    async def run():
        scorer.offer(1, live.rank(1, ALL_TRACKS))
        scorer.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(run())
    assert scorer.summary()["rankings"] == 0
