"""The real application against what nobody meant to send: no 5xx, and answers as documented.

schemathesis makes requests from the OpenAPI document, good and bad ones; hypothesis sends bytes and
headers that no document describes. Both are derandomized: the same requests every time.
"""

import json
import re

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from serving.deployment import load_app
from serving.error_answers import ErrorAnswer
from serving.tokens import create_token
from tests.serving.page.page_world import page_world
from tests.trained import TRACKS, USERS

FEW = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MANY = settings(FEW, max_examples=100)
OTHER_VIEWS = [positive_data_acceptance, negative_data_rejection]
POSTS = ("/v1/rank", "/v1/recommend", "/v1/events")
INSIDES = re.compile(r"Traceback|File \"|\.py\b|/(tmp|root|home|work|srv|usr|var)/")
"""Traces of a stack, and absolute paths."""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """The application of a workspace whose store takes events and whose catalogue has audio."""
    workspace = page_world(tmp_path_factory.mktemp("fuzz") / "workspace", "mcca")
    made = create_token(workspace, name="fuzz", scopes=["rank", "write_events"], requests_per_s=1e6)
    with asgi.get_client(load_app(workspace)) as client:
        client.headers["Authorization"] = f"Bearer {made['token']}"
        yield client


@pytest.fixture(scope="module")
def document(client):
    return schemathesis.openapi.from_asgi("/openapi.json", client.app)


def test_the_openapi_document_is_kept(document, client):
    """All checks but those that know better what is good: to JSON Schema 7.0 is an integer, while
    to us it is no id; and a query may hold names that no route asks for."""
    operations = [result.ok() for result in document.get_all_operations()]
    assert {operation.path for operation in operations} >= set(POSTS)
    for operation in operations:
        described = document.raw_schema["paths"][operation.path][operation.method.lower()]
        takes_anything = "requestBody" in described or "parameters" in described
        for mode in GenerationMode if takes_anything else [GenerationMode.POSITIVE]:

            @FEW
            @given(case=operation.as_strategy(generation_mode=mode))
            def kept(case):
                response = case.call_and_validate(session=client, excluded_checks=OTHER_VIEWS)
                assert not INSIDES.search(response.text)

            kept()


def answered(client, path, content, headers):
    """Sends it, checks what holds of every answer, and gives the status."""
    response = client.post(path, data=content, headers=headers)
    assert response.status_code < 500, response.text
    assert response.headers["x-request-id"]
    body = json.loads(response.content, parse_constant=lambda word: pytest.fail(word))
    if response.status_code != 200:
        ErrorAnswer.model_validate(body, strict=True)
        assert len(response.content) < 2000
    assert not INSIDES.search(response.text)
    return response.status_code


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
IDS = st.one_of(st.integers(-3, TRACKS + 3), st.integers(-(2**64), 2**64), JSON)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "user_id": st.one_of(st.integers(-1, USERS + 1), IDS),
        "candidates": st.one_of(st.lists(IDS, max_size=8), JSON),
        "history": st.one_of(st.lists(IDS, max_size=8), JSON),
        "count": st.one_of(st.integers(-1, 201), JSON),
        "max_per_artist": st.one_of(st.integers(-1, 3), JSON),
        "max_per_prefix": st.one_of(st.integers(-1, 3), st.just(2**70), JSON),
        "include_seen": JSON,
        "events": st.lists(
            st.fixed_dictionaries(
                {
                    "event_id": IDS,
                    "user_id": IDS,
                    "track_id": IDS,
                    "action": st.sampled_from(["play", "skip", "favourite", "", "drop table"]),
                    "event_timestamp": st.one_of(
                        st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
                        st.sampled_from(["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]),
                        JSON,
                    ),
                },
                optional={"played_ratio": JSON, "session_id": IDS},
            ),
            max_size=3,
        ),
    },
)


@MANY
@given(path=st.sampled_from(POSTS), body=FIELDS, wanted=st.booleans())
def test_fields_of_any_value(client, path, body, wanted):
    if wanted:  # only what the route knows, so that the values are looked at
        names = {
            "/v1/rank": {"user_id", "candidates"},
            "/v1/recommend": body.keys() - {"candidates", "events"},
            "/v1/events": {"events"},
        }
        body = {name: value for name, value in body.items() if name in names[path]}
    answered(client, path, json.dumps(body), {"content-type": "application/json"})


@MANY
@given(
    path=st.sampled_from(POSTS),
    content=st.one_of(
        st.binary(max_size=200),
        st.text(alphabet='{}[]":,0123456789eE.-+\\u nulltrefas', max_size=200).map(str.encode),
        st.integers(1, 200_000).map(lambda depth: b"[" * depth),
        st.integers(1, 100_000).map(lambda depth: b'{"user_id":' * (depth % 11_000)),
        st.integers(1, 9000).map(lambda digits: b'{"user_id": 1%s}' % (b"0" * digits)),
    ),
    kind=st.sampled_from(
        ["application/json", "application/vnd.api+json", "text/plain", "multipart/form-data", ""]
    ),
)
def test_bytes_of_any_kind(client, path, content, kind):
    answered(client, path, content, {"content-type": kind} if kind else {})


VALUES = st.one_of(
    # What an HTTP parser lets through: no control characters, no white space around.
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60).map(str.strip),
    st.sampled_from(["nan", "inf", "-inf", "1e999", "0", "-1", "5", "1" * 400]),
)


@MANY
@given(
    path=st.sampled_from(POSTS),
    headers=st.dictionaries(
        st.sampled_from(
            ["authorization", "x-request-id", "x-deadline-ms", "accept", "cookie", "content-type"]
        ),
        VALUES,
    ),
)
def test_headers_of_any_kind(client, path, headers):
    body = {
        "/v1/rank": {"user_id": 1, "candidates": [1, 2]},
        "/v1/recommend": {"history": [1, 2], "count": 3},
        "/v1/events": {"events": [{}]},
    }
    answered(client, path, json.dumps(body[path]), {"content-type": "application/json", **headers})


def test_good_requests_are_answered(client):
    """What the fuzz calls is the whole application, and not one that refuses everything."""
    json_type = {"content-type": "application/json"}
    event = {
        "event_id": 2**61,
        "user_id": 1,
        "track_id": 2,
        "action": "play",
        "event_timestamp": "2026-01-02T03:04:05Z",
    }
    for path, body in {
        "/v1/rank": {"user_id": 1, "candidates": [1, 2, 10**6]},
        "/v1/recommend": {"user_id": 1, "count": 5},
        "/v1/events": {"events": [event]},
    }.items():
        assert answered(client, path, json.dumps(body), json_type) == 200
