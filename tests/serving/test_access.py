"""Access over HTTP: scopes, rates, revoking while it runs, what stays shut, administration."""

import json
import time
from itertools import pairwise

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.access import Access, Bucket, Refused
from serving.tokens import SCOPES, create_token, revoke_token, tokens_path

PATHS = {"/v1/rank": "rank", "/v1/events": "write_events", "/v1/admin/swap": "administer"}


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def client_of(workspace, *, administration=True, client="127.0.0.1", host="127.0.0.1:8000"):
    """An app with a route for each scope, which counts what reaches it; and what was refused."""
    app, reached, rejected = FastAPI(), [], []

    async def route(request: Request):
        reached.append(request.url.path)
        return {"bytes": len(await request.body())}

    for path in (*PATHS, "/healthz", "/page/app.js"):
        app.post(path)(route)
    Access(workspace, administration=administration).guard(
        app, lambda reason, said: rejected.append(reason)
    )
    test_client = TestClient(app, base_url=f"http://{host}", client=(client, 50_000))
    test_client.reached, test_client.rejected = reached, rejected
    return test_client


def bearer(made):
    return {"Authorization": f"Bearer {made['token']}"}


def status(client, path, headers=None):
    return client.post(path, headers=headers).status_code


@pytest.mark.parametrize("own", SCOPES)
def test_a_token_opens_the_routes_of_its_scopes_and_no_other(workspace, own):
    made = create_token(workspace, name="one", scopes=[own])
    client = client_of(workspace)
    for path, scope in PATHS.items():
        response = client.post(path, headers=bearer(made))
        if scope == own:
            assert response.status_code == 200, path
        else:
            assert response.status_code == 403
            assert response.json() == {"error": f"token one lacks the scope {scope}"}
            assert f'scope="{scope}"' in response.headers["WWW-Authenticate"]
    assert client.reached == [path for path, scope in PATHS.items() if scope == own]
    assert client.rejected == ["access"] * 2


def test_two_scopes_open_both(workspace):
    made = create_token(workspace, name="one", scopes=["write_events", "rank"])
    client = client_of(workspace)
    assert [status(client, path, bearer(made)) for path in PATHS] == [200, 200, 403]


@pytest.mark.parametrize(
    "credentials",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer crescendo_" + "A" * 43,
        "Bearer " + "x" * 100_000,
        "Bearer \xff\xfe",
        "Basic {token}",
        "{token}",
        "Bearer {token}x",
        "Bearer {token} {token}",
    ],
)
def test_without_a_good_token_nothing_is_reached_and_no_body_is_read(workspace, credentials):
    made = create_token(workspace, name="one", scopes=SCOPES)
    client = client_of(workspace)
    headers = {}
    if credentials is not None:
        headers["Authorization"] = credentials.format(token=made["token"]).encode("latin-1")
    read = []

    def body():
        read.append(True)
        yield b"{"

    response = client.post("/v1/rank", headers=headers, content=body())
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith('Bearer realm="crescendo"')
    assert made["token"] not in response.text
    assert client.reached == []
    assert client.rejected == ["access"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(workspace, scheme):
    made = create_token(workspace, name="one", scopes=["rank"])
    header = {"Authorization": f"{scheme} {made['token']}"}
    assert status(client_of(workspace), "/v1/rank", header) == 200


def test_probes_and_the_page_need_no_token_and_an_unlisted_route_does(workspace):
    create_token(workspace, name="one", scopes=["rank"])
    client = client_of(workspace)
    assert status(client, "/healthz") == 200
    assert status(client, "/page/app.js") == 200
    for path in ("/v2/new", "/page", "/healthz/", "//v1/rank", "/V1/rank", "/docs"):
        assert status(client, path) == 401, path


def test_an_expired_token_is_refused(workspace):
    gone = create_token(workspace, name="gone", scopes=["rank"], valid_days=1e-9)
    good = create_token(workspace, name="good", scopes=["rank"], valid_days=1)
    client = client_of(workspace)
    response = client.post("/v1/rank", headers=bearer(gone))
    assert response.status_code == 401
    assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]
    assert status(client, "/v1/rank", bearer(good)) == 200


def outcome(access, made, now_s, scope="rank"):
    """`token` or `open` if a call may go on, else the status."""
    try:
        authorization = f"Bearer {made['token']}" if made else ""
        return "open" if access.check(authorization, scope, now_s) is None else "token"
    except Refused as error:
        return error.status


def test_changes_are_seen_within_a_second_and_without_a_restart(workspace):
    first = create_token(workspace, name="first", scopes=["rank"])
    access, now_s = Access(workspace), time.monotonic()
    second = create_token(workspace, name="second", scopes=["rank"])
    assert outcome(access, second, now_s + 1.1) == "token"
    revoke_token(workspace, name="first")
    assert outcome(access, first, now_s + 2.2) == 401
    assert outcome(access, second, now_s + 2.2) == "token"
    revoke_token(workspace, name="second")
    assert outcome(access, second, now_s + 3.3) == 401
    assert outcome(access, None, now_s + 3.3) == 401  # none left is not open to all


def test_open_until_the_first_token_and_never_again(workspace):
    access, now_s = Access(workspace), time.monotonic()
    assert outcome(access, None, now_s) == "open"
    made = create_token(workspace, name="one", scopes=["rank"])
    assert outcome(access, None, now_s + 1.1) == 401
    assert outcome(access, made, now_s + 1.1) == "token"
    tokens_path(workspace).unlink()
    assert outcome(access, made, now_s + 2.2) == 401
    assert outcome(access, None, now_s + 2.2) == 401


def test_a_file_that_cannot_be_read_leaves_the_tokens_as_they_are(workspace):
    made = create_token(workspace, name="one", scopes=["rank"])
    access, now_s = Access(workspace), time.monotonic()
    tokens_path(workspace).write_text("{")
    assert outcome(access, made, now_s + 1.1) == "token"
    assert outcome(access, None, now_s + 1.1) == 401
    with pytest.raises(InputError, match="crescendo token create"):
        Access(workspace)  # and a new server does not start with it
    tokens_path(workspace).write_text(json.dumps({"tokens": []}))
    assert outcome(access, made, now_s + 2.2) == 401


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    per_s=st.floats(0.1, 500),
    gaps=st.lists(st.one_of(st.just(0.0), st.floats(0, 3)), min_size=1, max_size=60),
)
def test_no_window_of_time_lets_more_through_than_the_rate(per_s, gaps):
    """Between any two admitted requests, inclusive: at most a second's worth plus the rate."""
    bucket, now_s, admitted = Bucket(per_s, 0.0), 0.0, []
    for gap in gaps:
        now_s += gap
        wait_s = bucket.take(now_s)
        if wait_s == 0:
            admitted.append(now_s)
        else:  # and the wait that it names is enough, and not too long
            assert 0 < wait_s <= 1 / per_s
            now_s += wait_s * (1 + 1e-9) + 1e-9
            assert bucket.take(now_s) == 0
            admitted.append(now_s)
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            window_s = admitted[last] - admitted[first]
            assert last - first + 1 <= max(per_s, 1) + per_s * window_s + 1e-6
    assert all(later >= earlier for earlier, later in pairwise(admitted))


def test_above_its_rate_a_token_gets_429_and_others_do_not(workspace):
    busy = create_token(workspace, name="busy", scopes=["rank"], requests_per_s=2)
    calm = create_token(workspace, name="calm", scopes=["rank"], requests_per_s=0.01)
    access, now_s = Access(workspace), time.monotonic()
    assert [outcome(access, busy, now_s) for _ in range(4)] == ["token", "token", 429, 429]
    assert [outcome(access, calm, now_s) for _ in range(2)] == ["token", 429]
    assert outcome(access, busy, now_s + 0.51) == "token"
    assert outcome(access, busy, now_s + 0.52) == 429
    # A change elsewhere in the file fills no bucket.
    create_token(workspace, name="third", scopes=["rank"])
    assert outcome(access, calm, now_s + 1.2) == 429
    client = client_of(workspace)
    assert status(client, "/v1/rank", bearer(calm)) == 200
    response = client.post("/v1/rank", headers=bearer(calm))
    assert response.status_code == 429
    assert 99 <= int(response.headers["Retry-After"]) <= 100
    assert response.json() == {"error": "token calm may make 0.01 requests a second"}
    assert client.rejected == ["rate"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 200),
        ({"client": "::1", "host": "[::1]:8000"}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"administration": False}, 404),
        ({"client": "10.0.0.7"}, 403),
        ({"host": "rebound.example.org:8000"}, 403),
    ],
)
@pytest.mark.parametrize("with_tokens", [False, True])
def test_administration_is_off_by_default_and_on_loopback_only(
    workspace, options, expected, with_tokens
):
    headers = {}
    if with_tokens:
        headers = bearer(create_token(workspace, name="admin", scopes=["administer"]))
    client = client_of(workspace, **options)
    assert status(client, "/v1/admin/swap", headers) == expected
    assert client.reached == (["/v1/admin/swap"] if expected == 200 else [])
    if with_tokens and expected == 200:
        assert status(client, "/v1/admin/swap") == 401


def test_the_openapi_document_says_which_routes_want_a_token(workspace):
    client = client_of(workspace)
    for _ in range(2):
        document = client.get("/openapi.json").json()
        assert document["components"]["securitySchemes"] == {
            "token": {"type": "http", "scheme": "bearer"}
        }
        wants = {path: "security" in each["post"] for path, each in document["paths"].items()}
        assert wants == {**dict.fromkeys(PATHS, True), "/healthz": False, "/page/app.js": False}
