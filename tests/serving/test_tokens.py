"""Stored tokens: made, shown once, listed, revoked; what is on the disk and who may read it."""

import hashlib
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.tokens import create_token, list_tokens, read_tokens, revoke_token, tokens_path


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "w")


def test_the_disk_holds_the_hash_and_never_the_token(workspace):
    made = create_token(workspace, name="web", scopes=["rank", "write_events"])
    written = tokens_path(workspace).read_text()
    assert made["token"] not in written
    assert made["token"].removeprefix("crescendo_") not in written
    (stored,) = json.loads(written)["tokens"]
    assert stored["sha256"] == hashlib.sha256(made["token"].encode()).hexdigest()
    assert len(made["token"]) == len("crescendo_") + 43  # 256 bits in base64
    assert list_tokens(workspace) == {
        "tokens": [{key: made[key] for key in made if key != "token"}]
    }


def test_nobody_else_may_read_the_file(workspace):
    for name in ("a", "b"):
        create_token(workspace, name=name, scopes=["rank"])
    path = tokens_path(workspace)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["tokens.json"]


def test_no_two_tokens_are_equal_and_many_writers_lose_none(workspace):
    with ThreadPoolExecutor(8) as threads:
        made = list(
            threads.map(lambda n: create_token(workspace, name=f"t{n}", scopes=["rank"]), range(24))
        )
    assert len({one["token"] for one in made}) == 24
    assert {one["name"] for one in list_tokens(workspace)["tokens"]} == {f"t{n}" for n in range(24)}


def test_a_revoked_token_is_gone_and_its_name_is_free(workspace):
    create_token(workspace, name="web", scopes=["rank"])
    create_token(workspace, name="jobs", scopes=["write_events"])
    assert revoke_token(workspace, name="web") == {"revoked": "web", "tokens": 1}
    assert [one["name"] for one in list_tokens(workspace)["tokens"]] == ["jobs"]
    create_token(workspace, name="web", scopes=["rank"])
    revoke_token(workspace, name="jobs")
    revoke_token(workspace, name="web")
    assert read_tokens(tokens_path(workspace)) == []  # and not None: such a server is shut


def test_an_expiry_is_kept(workspace):
    before = datetime.now(UTC)
    made = create_token(workspace, name="web", scopes=["rank"], valid_days=1.5)
    (token,) = read_tokens(tokens_path(workspace))
    expires = datetime.fromisoformat(made["expires_at"])
    assert timedelta(days=1.5) <= expires - before < timedelta(days=1.51)
    assert token.expires_s == pytest.approx(expires.timestamp(), abs=1e-3)
    create_token(workspace, name="other", scopes=["rank"])
    assert read_tokens(tokens_path(workspace))[1].expires_s == float("inf")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "web"}, "a token named web exists; run `crescendo token revoke --name web`"),
        ({"name": "a b"}, "name must be"),
        ({"name": ""}, "name must be"),
        ({"name": "x" * 65}, "name must be"),
        ({"name": "a\nb"}, "name must be"),
        ({"scopes": []}, "scopes must be one or more of rank, write_events, administer"),
        ({"scopes": ["rank", "root"]}, "got .*'root'"),
        ({"requests_per_s": 0}, "requests_per_s must be above 0"),
        ({"requests_per_s": float("nan")}, "requests_per_s must be a number"),
        ({"requests_per_s": float("inf")}, "requests_per_s must be a number"),
        ({"valid_days": 0}, "valid_days must be above 0"),
        ({"valid_days": float("nan")}, "valid_days must be above 0"),
        ({"valid_days": 1e9}, "at most 36500"),
    ],
)
def test_wrong_options_are_refused_and_change_nothing(workspace, options, reason):
    create_token(workspace, name="web", scopes=["rank"])
    before = tokens_path(workspace).read_text()
    with pytest.raises(InputError, match=reason):
        create_token(workspace, **{"name": "new", "scopes": ["rank"], **options})
    assert tokens_path(workspace).read_text() == before


def test_revoking_what_is_not_there_says_what_is(workspace):
    with pytest.raises(InputError, match="no token is named web; there is none at all"):
        revoke_token(workspace, name="web")
    assert not tokens_path(workspace).exists()
    create_token(workspace, name="jobs", scopes=["rank"])
    with pytest.raises(InputError, match="no token is named web; there is jobs"):
        revoke_token(workspace, name="web")


@pytest.mark.parametrize(
    "written",
    [
        "",
        "[]",
        '{"tokens": 3}',
        '{"tokens": [{}]}',
        '{"tokens": [{"name": "a", "sha256": "00", "scopes": ["rank"], "created_at": "",'
        ' "expires_at": null, "requests_per_s": 1}]}',
        '{"tokens": [{"name": "a", "sha256": "%s", "scopes": ["rank"], "created_at": "",'
        ' "expires_at": "2026-01-01", "requests_per_s": 1}]}' % ("0" * 64),
    ],
)
def test_a_foreign_file_is_refused_with_the_command_that_helps(workspace, written):
    path = tokens_path(workspace)
    path.parent.mkdir(parents=True)
    path.write_text(written)
    with pytest.raises(InputError, match=r"holds no tokens .*crescendo token create"):
        list_tokens(workspace)
