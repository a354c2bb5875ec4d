"""The page's routes in the whole application: what they answer, and against what it is checked."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from feature_repo.workspace import Workspace
from serving.page.assets import FOLDER
from tests.generations import CODES, FAMILIES, LEVELS
from tests.serving.page.page_world import AUDIBLE, GENERATION, LENGTH, MARKUP
from tests.trained import TRACKS, USERS


@pytest.fixture(scope="module")
def client(page_app):
    with TestClient(page_app) as client:
        yield client


def answer(client, path, **parameters):
    response = client.get(path, params=parameters)
    assert response.status_code == 200, response.text
    return response.json()


def ids_table(workspace: Workspace):
    table = pq.read_table(workspace.generations / GENERATION / "ids.parquet")
    return {row["track_id"]: row for row in table.to_pylist()}


# --- the page's own files ------------------------------------------------------------------------


def test_the_page_loads_only_what_the_server_sends(client):
    index = client.get("/")
    assert index.headers["content-type"].startswith("text/html")
    policy = dict(
        part.strip().split(" ", 1) for part in index.headers["content-security-policy"].split(";")
    )
    assert policy.pop("media-src") == "'self' blob:"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert policy["default-src"] == "'none'"
    # What the policy would not let run must not be there.
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", index.text)
    wanted = set(re.findall(r'(?:src|href)="([^"#]+)"', index.text))
    assert {"page/app.js", "page/style.css", "page/icon.svg"} == wanted
    while wanted:
        path = wanted.pop()
        file = client.get(path)
        assert file.status_code == 200, path
        assert file.headers["content-security-policy"] == index.headers["content-security-policy"]
        assert file.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in file.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in file.text
        imports = re.findall(r'from "\./(\w+\.js)"', file.text)
        wanted |= {f"page/{name}" for name in imports if path != f"page/{name}"} - {path}
        if path.endswith(".js"):
            assert "innerHTML" not in file.text
            assert file.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "name", ["catalogue.py", "index.html", "..%2fapp.py", "%2e%2e/app.py", "app.js%00", "no.js"]
)
def test_other_files_are_not_sent(client, name):
    response = client.get(f"/page/{name}")
    assert response.status_code == 404
    assert "error" in response.json()


def test_every_script_is_reached_from_the_page(client):
    texts = "".join(path.read_text() for path in [*FOLDER.glob("*.js"), FOLDER / "index.html"])
    for path in FOLDER.glob("*.js"):
        assert path.name in texts, f"nothing loads {path.name}"


# --- looking up ----------------------------------------------------------------------------------


def test_release(client, page_workspace):
    assert answer(client, "/v1/browse/release") == {
        "release_id": answer(client, "/readyz")["release_id"],
        "model": "mcca",
        "families": list(FAMILIES),
        "levels": LEVELS,
        "tracks": TRACKS,
        "titles": TRACKS,
    }


def test_users_and_their_history(client, page_workspace):
    log = pq.read_table(page_workspace.events).to_pylist()
    newest = {row["user_id"]: row["event_timestamp"] for row in sorted_log(log)}
    users = answer(client, "/v1/browse/users")
    by_time = sorted(newest, key=newest.__getitem__, reverse=True)
    assert [user["user_id"] for user in users] == by_time[:20]
    found = answer(client, "/v1/browse/users", digits="3")
    assert {user["user_id"] for user in found} == {
        user for user in range(1, USERS + 1) if str(user).startswith("3")
    }
    user_id = by_time[0]
    history = answer(client, f"/v1/browse/users/{user_id}")
    listens = [row for row in sorted_log(log) if row["user_id"] == user_id]
    listens = [row for row in listens if row["action"] != "skip"][-LENGTH:][::-1]
    assert [listen["track"]["track_id"] for listen in history["listens"]] == [
        row["track_id"] for row in listens
    ]
    assert [listen["action"] for listen in history["listens"]] == ["complete"] * LENGTH
    moment = listens[0]["event_timestamp"].isoformat().replace("+00:00", "Z")
    assert history["listens"][0]["listened_at"] == moment
    assert answer(client, "/v1/browse/users/-77")["listens"] == []


def sorted_log(log):
    return sorted(log, key=lambda row: (row["event_timestamp"], row["event_id"]))


def test_tracks_by_text_and_by_id(client):
    found = answer(client, "/v1/browse/search", text="NUMBER 17")
    assert [track["title"] for track in found] == ["Song number 17"]
    assert len(answer(client, "/v1/browse/search", text="song")) == 20
    (script, unknown) = answer(client, "/v1/browse/tracks", ids=[1, 999])
    assert script == {
        "track_id": 1,
        "title": MARKUP,
        "artist": "Artist 1",
        "tags": ["odd", "seventh 1"],
        "playable": True,
    }
    assert (unknown["title"], unknown["playable"]) == (None, False)


def test_a_tracks_ids_and_neighbours(client, page_workspace):
    table = ids_table(page_workspace)
    found = answer(client, "/v1/browse/tracks/7")
    assert [one["family"] for one in found["ids"]] == list(FAMILIES)
    for one in found["ids"]:
        column = f"{one['family']}_sid"
        assert one["codes"] == table[7][column]
        for near in one["neighbours"]:
            shared = near["shared"]
            assert shared
            assert table[near["track"]["track_id"]][column][:shared] == one["codes"][:shared]
    # The first track lacks audio.
    audio = answer(client, "/v1/browse/tracks/1")["ids"][FAMILIES.index("audio")]
    assert (audio["codes"], audio["neighbours"]) == ([], [])


def test_codes_and_what_lies_under_them(client, page_workspace):
    table = ids_table(page_workspace)
    root = answer(client, "/v1/browse/codes/joint")
    assert root["found"] == TRACKS == sum(child["tracks"] for child in root["children"])
    assert [child["code"] for child in root["children"]] == list(range(CODES))
    child = root["children"][2]
    assert 1 <= len(child["tags"]) <= 3
    under = answer(client, "/v1/browse/codes/joint", prefix=2)
    assert under["found"] == child["tracks"] == len(under["tracks"])
    assert {track["track_id"] for track in under["tracks"]} == {
        track for track, row in table.items() if row["joint_sid"][0] == 2
    }
    code = under["children"][0]["code"]
    whole = answer(client, "/v1/browse/codes/joint", prefix=[2, code])
    assert whole["prefix"] == [2, code]
    assert whole["children"] == []
    nothing = answer(client, "/v1/browse/codes/joint", prefix=CODES)
    assert (nothing["found"], nothing["children"], nothing["tags"]) == (0, [], [])


def test_audio_whole_and_in_ranges(client, page_workspace):
    content = (page_workspace.root / "audio" / "3.wav").read_bytes()
    whole = client.get("/v1/browse/tracks/3/audio")
    assert whole.content == content
    assert whole.headers["content-type"] == "audio/wav"
    part = client.get("/v1/browse/tracks/3/audio", headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.content == content[100:200]
    missing = client.get(f"/v1/browse/tracks/{AUDIBLE + 1}/audio")
    assert missing.status_code == 404
    assert str(page_workspace.root) not in missing.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/browse/users?digits=1%25", 422),
        ("/v1/browse/users?digits=" + "1" * 20, 422),
        (f"/v1/browse/users/{2**63}", 422),
        ("/v1/browse/users/x", 422),
        ("/v1/browse/search", 422),
        ("/v1/browse/search?text=", 422),
        ("/v1/browse/search?text=" + "a" * 101, 422),
        ("/v1/browse/tracks", 422),
        ("/v1/browse/tracks?" + "&".join(["ids=1"] * 201), 422),
        ("/v1/browse/tracks/999", 404),
        ("/v1/browse/tracks/999/audio", 404),
        ("/v1/browse/codes/image", 404),
        ("/v1/browse/codes/joint?prefix=1&prefix=1&prefix=1", 404),
        ("/v1/browse/codes/joint?prefix=a", 422),
        ("/v1/explain?track_id=3", 422),
        ("/v1/explain?track_id=3&user_id=1&history=2", 422),
        ("/v1/explain?user_id=1", 422),
        ("/v1/explain?track_id=999&user_id=1", 404),
    ],
)
def test_bad_requests_get_a_reason(client, path, status):
    response = client.get(path)
    assert response.status_code == status
    assert response.json()["error"]
    assert len(response.text) < 1000


# --- why -----------------------------------------------------------------------------------------


def test_an_explanation_fits_the_ranking(client):
    history = answer(client, "/v1/browse/users/5")["listens"]
    why = answer(client, "/v1/explain", track_id=9, user_id=5)
    ranked = client.post("/v1/rank", json={"user_id": 5, "candidates": [9, 10]}).json()
    score = {result["track_id"]: result["score"] for result in ranked["results"]}[9]
    assert why["score"] == pytest.approx(score, abs=1e-5)
    assert why["release_id"] == ranked["release_id"]
    assert why["model"] == "mcca"
    assert why["attention"] == [*FAMILIES, "track"]
    assert [listen["track"] for listen in why["listens"]] == [one["track"] for one in history]


def test_the_attention_of_other_rankers(other_app):
    model = other_app.state.model
    with TestClient(other_app) as client:
        why = answer(client, "/v1/explain", track_id=9, user_id=5)
        ranked = client.post("/v1/rank", json={"user_id": 5, "candidates": [9]}).json()
    assert why["model"] == model
    assert why["score"] == pytest.approx(ranked["results"][0]["score"], abs=1e-5)
    weights = {name: [one["weights"][name] for one in why["listens"]] for name in why["attention"]}
    assert all(len(own) == LENGTH and any(own) for own in weights.values())
    if model == "transformer":
        assert list(weights)[:1] == ["block 1"]
        assert all(min(own) > 0 and 0 < sum(own) < 1 for own in weights.values())
    else:
        assert list(weights) == ["+".join(["track", *FAMILIES])]


def test_a_change_is_the_score_without_the_listen(client):
    history = [4, 8, 15, 16, 23]

    def explained(listens):
        return answer(client, "/v1/explain", track_id=42, history=listens)

    whole = explained(history)
    for place in range(len(history)):
        without = explained(history[:place] + history[place + 1 :])
        change = whole["listens"][::-1][place]["change"]
        assert change == pytest.approx(whole["score"] - without["score"], abs=1e-6)
    assert any(abs(listen["change"]) > 1e-4 for listen in whole["listens"])
    # Of a longer history the model sees the newest only; an unknown track is a listen like any.
    longer = explained([30, 31, 999, *history])
    assert [listen["track"]["track_id"] for listen in longer["listens"]] == [23, 16, 15, 8, 4, 999]


def test_shared_codes(client, page_workspace):
    table = ids_table(page_workspace)
    why = answer(client, "/v1/explain", track_id=42, history=[1, 42, 7])
    for listen in why["listens"]:
        for family in FAMILIES:
            mine = table[listen["track"]["track_id"]][f"{family}_sid"] or []
            codes = table[42][f"{family}_sid"]
            same = np.cumprod([a == b for a, b in zip(mine, codes, strict=False)])
            assert listen["shared"][family] == same.sum()
