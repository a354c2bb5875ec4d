"""The body of a ranking is the JSON of its model, whatever is missing in it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.ranker import Ranking
from serving.ranking_routes import rank_response
from serving.schemas import RankResponse

IDS = st.integers(-(2**63), 2**63 - 1)
SCORES = st.none() | st.floats(0, 1, width=32)


@given(
    rows=st.lists(st.tuples(IDS, SCORES), max_size=20),
    unknown=st.lists(IDS, max_size=3),
    user_id=IDS,
    user_known=st.booleans(),
)
@pytest.mark.parametrize("degraded", [[], ["user_stale", "popularity"]])
def test_the_body_holds_the_ranking(rows, unknown, user_id, user_known, degraded):
    ranking = Ranking(
        track_ids=[track for track, _ in rows],
        scores=[score for _, score in rows],
        user_known=user_known,
        unknown_track_ids=unknown,
    )
    body = rank_response("release-1", user_id, ranking, degraded)
    expected = {
        "release_id": "release-1",
        "user_id": user_id,
        "results": [{"track_id": track, "score": score} for track, score in rows],
        "missing": {"user": not user_known, "tracks": unknown},
        "degraded": degraded,
    }
    assert json.loads(body) == expected
    assert RankResponse.model_validate_json(body).model_dump() == expected
