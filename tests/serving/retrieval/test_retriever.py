"""Candidates of a made-up catalogue against plain Python, and the hard cases."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import MISSING_CODE, ItemTable
from serving.retrieval.diversity import UNKNOWN
from serving.retrieval.options import SOURCES, WITH_MME_SID, RetrievalOptions
from serving.retrieval.retriever import Candidates, Retriever
from serving.retrieval.track_facts import TrackFacts
from serving.retrieval.vector_index import VectorIndex

TRACKS, DIMS, LEVELS = 300, 8, 2
NOW_US = 10**9
FAMILIES = ("text", "audio", "joint")
OPTIONS = RetrievalOptions(vectors=20, prefix=15, popular=10, new=5)


def ids(rows):
    return np.asarray(rows, dtype=np.int64) * 11 - 40


def facts_of(tracks, **changes) -> TrackFacts:
    random = np.random.default_rng(4)
    columns = {
        "listed_I": np.ones(tracks, dtype=bool),
        "artist_I": (np.arange(tracks) // 4).astype(np.int32),
        "released_us_I": random.permutation(tracks) * 10**6,
        "counts": [random.integers(0, 9, tracks), random.integers(0, 99, tracks)],
        "now_us": NOW_US,
    }
    return TrackFacts.of(**{**columns, **changes})


def retriever_of(tracks=TRACKS, *, vectors=True, **changes) -> Retriever:
    random = np.random.default_rng(0)
    codes = random.integers(0, 4, (tracks, len(FAMILIES), LEVELS))
    codes[5::50] = MISSING_CODE
    items = ItemTable(track_ids_I=ids(range(tracks)), codes_IFL=codes)
    index = VectorIndex.build(items.track_ids_I, unit_rows(tracks)) if vectors else None
    return Retriever(items, FAMILIES.index("joint"), facts_of(tracks, **changes), index)


def unit_rows(tracks):
    x = np.random.default_rng(1).standard_normal((tracks, DIMS))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def retriever():
    return retriever_of()


def named(found: Candidates, source: str) -> set[int]:
    return {
        int(track)
        for place, track in enumerate(found.track_ids_C)
        if source in found.sources(place)
    }


def test_every_source_proposes_what_it_is_for(retriever):
    history = ids([3, 77, 3, 120, 9])
    found = retriever.candidates(history, OPTIONS)
    assert len(set(found.track_ids_C)) == len(found.track_ids_C) == OPTIONS.total
    assert not np.isin(found.track_ids_C, history).any()
    unseen = [row for row in range(TRACKS) if row not in (3, 77, 120, 9)]

    x = unit_rows(TRACKS).astype("f2").astype("f8")
    products = x @ x[[3, 77, 3, 120, 9]].mean(0)
    nearest = sorted(unseen, key=lambda row: -products[row])[:20]
    assert named(found, "vectors") == set(ids(nearest))

    facts = facts_of(TRACKS)
    newest = [row for row in facts.newest_N if row in unseen][:5]
    assert named(found, "new") == set(ids(newest))
    popular = [row for row in facts.popular_N if row in unseen]
    assert set(ids(popular[:10])) <= named(found, "popular")

    joint = retriever.items.codes_IFL[:, 2].tolist()
    heard = [joint[row] for row in (3, 77, 120, 9)]
    same = {row for row in unseen if joint[row] in heard}
    assert len(same) >= OPTIONS.prefix  # whole joint IDs are enough to fill the quota
    assert named(found, "prefix") <= set(ids(sorted(same)))
    assert len(named(found, "prefix")) == OPTIONS.prefix


def test_popularity_is_of_the_first_count_that_differs():
    counts = [np.array([0, 5, 5, 0, 0]), np.array([9, 1, 2, 0, 9]), np.array([1, 0, 0, 7, 2])]
    facts = facts_of(5, counts=counts)
    assert facts.popular_N.tolist() == [2, 1, 4, 0, 3]
    assert facts.popularity_I.tolist() == [3, 1, 0, 4, 2]
    assert facts_of(5, counts=[np.zeros(5, int)]).popular_N.tolist() == []


def test_new_tracks_are_released_ones():
    released_us = np.array([5, NOW_US + 1, np.iinfo(np.int64).max, NOW_US, 7])
    assert facts_of(5, released_us_I=released_us).newest_N.tolist() == [3, 4, 0]


def test_places_that_a_source_leaves_go_to_popular_and_new(retriever):
    nobody = np.empty(0, dtype=np.int64)
    found = retriever.candidates(nobody, OPTIONS)
    assert len(found.track_ids_C) == OPTIONS.total
    assert named(found, "popular") | named(found, "new") == set(found.track_ids_C.tolist())
    assert not named(found, "vectors") | named(found, "prefix")
    unknown = retriever.candidates(np.array([10**12, -(10**12)]), OPTIONS)
    np.testing.assert_array_equal(unknown.track_ids_C, found.track_ids_C)
    near_only = RetrievalOptions(vectors=30, prefix=0, popular=0, new=0)
    assert len(retriever.candidates(nobody, near_only).track_ids_C) == 0
    assert len(retriever.candidates(ids([1]), near_only).track_ids_C) == 30


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, TRACKS + 50), max_size=60),
    st.tuples(*[st.integers(0, 40)] * len(SOURCES)).filter(any),
    st.lists(st.integers(0, TRACKS + 50), max_size=60, unique=True),
    st.booleans(),
)
def test_promises_of_any_request(retriever, history, quotas, expected, include_seen):
    named_quotas = dict(zip(SOURCES, quotas, strict=True))
    options = RetrievalOptions(**named_quotas, include_seen=include_seen)
    found = retriever.candidates(ids(history), options, ids(expected))
    assert len(found.track_ids_C) == len(found.sources_C) <= options.total
    assert len(set(found.track_ids_C.tolist())) == len(found.track_ids_C)
    assert retriever.items.knows(found.track_ids_C).all()
    if not include_seen:
        assert not set(ids(history).tolist()) & set(found.track_ids_C.tolist())
    assert all(found.sources(place) for place in range(len(found.track_ids_C)))
    assert len(named(found, "vectors")) <= options.vectors
    assert len(named(found, "prefix")) <= options.prefix
    assert len(named(found, "mme_sid")) <= options.mme_sid
    assert named(found, "mme_sid") <= set(ids(expected).tolist())
    for source, quota in named_quotas.items():
        assert quota or not named(found, source)
    if options.popular and options.new:
        assert len(found.track_ids_C) == options.total


def test_what_a_retriever_model_expects_is_proposed_in_its_order():
    listed_I = np.ones(TRACKS, dtype=bool)
    listed_I[[8, 30]] = False
    retriever = retriever_of(listed_I=listed_I)
    expected = [200, 8, 3, 250, TRACKS + 5, 30, 9, 77, 100]
    options = RetrievalOptions(vectors=0, prefix=0, popular=2, new=0, mme_sid=4)
    found = retriever.candidates(ids([3, 120]), options, ids(expected))
    # Not what left the catalogue (8, 30), is unknown, or was heard (3).
    own = [track for track in found.track_ids_C.tolist() if track in named(found, "mme_sid")]
    assert own == ids([200, 250, 9, 77]).tolist()
    assert len(found.track_ids_C) == options.total
    heard = replace(options, include_seen=True)
    found = retriever.candidates(ids([3, 120]), heard, ids(expected))
    assert named(found, "mme_sid") == set(ids([200, 3, 250, 9]).tolist())
    without = retriever.candidates(ids([3, 120]), options)
    assert not named(without, "mme_sid")
    assert len(without.track_ids_C) == options.total  # popular ones fill its places


def test_shares_with_a_retriever_model_cost_the_ranker_no_more():
    assert RetrievalOptions(**WITH_MME_SID).total == RetrievalOptions().total
    assert RetrievalOptions().mme_sid == 0


def test_the_first_candidates_are_a_fair_choice(retriever):
    found = retriever.candidates(ids([3, 77, 120]), OPTIONS)
    first = Candidates(track_ids_C=found.track_ids_C[:25], sources_C=found.sources_C[:25])
    for source in SOURCES:
        share = getattr(OPTIONS, source) * 25 / OPTIONS.total
        assert abs(len(named(first, source)) - share) <= 4


def test_seen_tracks_are_candidates_where_that_is_asked(retriever):
    options = RetrievalOptions(vectors=20, prefix=15, popular=10, new=5, include_seen=True)
    found = retriever.candidates(ids([3]), options)
    assert found.track_ids_C[0] == ids(3)  # nothing is nearer
    assert {"vectors", "prefix"} <= set(found.sources(0))


def test_the_newest_listens_are_asked_with(retriever):
    old, recent = list(range(100, 200)), list(range(20))
    asked = retriever.candidates(ids(old + recent), OPTIONS)
    alone = retriever.candidates(ids(recent), OPTIONS)
    assert named(asked, "vectors") >= named(alone, "vectors") - set(ids(old).tolist())


def test_tracks_that_left_the_catalogue_are_no_candidates():
    listed = np.arange(TRACKS) % 3 > 0
    retriever = retriever_of(listed_I=listed)
    found = retriever.candidates(ids([0, 1, 2, 3]), OPTIONS)
    assert len(found.track_ids_C) == OPTIONS.total
    rows = np.searchsorted(retriever.items.track_ids_I, found.track_ids_C)
    assert listed[rows].all()
    assert len(named(found, "vectors")) == OPTIONS.vectors
    assert retriever.sizes["vectors"] == listed.sum()


def test_fewer_tracks_than_asked():
    found = retriever_of(7).candidates(ids([2]), OPTIONS)
    assert set(found.track_ids_C) <= set(ids([0, 1, 3, 4, 5, 6]))
    assert len(found.track_ids_C) >= 5


def test_an_empty_catalogue():
    retriever = retriever_of(0)
    nobody = np.empty(0, dtype=np.int64)
    for history in (nobody, np.array([1, 2])):
        found = retriever.candidates(history, OPTIONS)
        assert found.track_ids_C.tolist() == found.sources_C.tolist() == []
    assert retriever.diversify(nobody, 5, max_per_artist=1).tolist() == []
    assert set(retriever.sizes.values()) == {0}


def test_without_vectors_the_other_sources_go_on():
    retriever = retriever_of(vectors=False)
    found = retriever.candidates(ids([3, 77]), OPTIONS)
    assert retriever.sizes["vectors"] == 0
    assert len(found.track_ids_C) == OPTIONS.total
    assert not named(found, "vectors")
    assert len(named(found, "prefix")) == OPTIONS.prefix


def test_popular_alone_is_in_its_order(retriever):
    def first(count, history):
        options = RetrievalOptions(vectors=0, prefix=0, popular=count, new=0)
        return retriever.candidates(history, options).track_ids_C

    popular = first(6, np.empty(0, dtype=np.int64))
    np.testing.assert_array_equal(popular, ids(facts_of(TRACKS).popular_N[:6]))
    np.testing.assert_array_equal(first(5, popular[:1]), popular[1:])


def test_diversity_by_artist_and_by_the_first_joint_code(retriever):
    ranked = ids(np.random.default_rng(2).permutation(TRACKS)[:100])
    rows = np.searchsorted(retriever.items.track_ids_I, ranked)
    places = retriever.diversify(ranked, 12, max_per_artist=1, max_per_prefix=4)
    artists, codes = rows[places] // 4, retriever.items.codes_IFL[rows[places], 2, 0]
    assert len(set(artists)) == len(places) == 12
    known = codes[codes != MISSING_CODE]
    assert max(np.unique(known, return_counts=True)[1]) <= 4
    assert retriever.diversify(ranked, 12).tolist() == list(range(12))
    nobody = facts_of(TRACKS, artist_I=np.full(TRACKS, UNKNOWN, dtype=np.int32))
    unknown = Retriever(retriever.items, 2, nobody, None)
    assert unknown.diversify(ranked, 12, max_per_artist=1).tolist() == list(range(12))
    with pytest.raises(KeyError, match="no such track in the item table: 5"):
        retriever.diversify(np.array([5]), 3, max_per_artist=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prefix": -1}, "prefix must be at least 0, got -1"),
        ({"vectors": 3000}, "must be 1 to 2000, got 3300"),
        ({"vectors": 0, "prefix": 0, "popular": 0, "new": 0}, "must be 1 to 2000, got 0"),
    ],
)
def test_options_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        RetrievalOptions(**wrong)
