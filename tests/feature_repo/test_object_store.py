"""Conditional writes, the lock of a workspace's writer, and errors, against a real S3 server."""

import boto3
import pytest

from feature_repo.errors import InputError
from feature_repo.object_store import Changed, Gone, ObjectStore
from feature_repo.working_copy import working_copy
from feature_repo.write_lock import LOCK, write_lock
from tests.servers_sql_s3 import free_port


def opened(block) -> None:
    with block:
        pytest.fail("it was opened")


def test_an_index_is_not_written_over_another(object_store):
    objects = ObjectStore(object_store.uri)
    etag = objects.write("index.json", {"n": 1}, over=None)
    objects.write("index.json", {"n": 2}, over=etag)
    for over in (None, etag, '"0123"'):
        with pytest.raises(Changed):
            objects.write("index.json", {"n": 3}, over=over)
    with pytest.raises(Changed):
        objects.write("missing.json", {"n": 3}, over=etag)
    found = objects.read("index.json")
    assert found is not None
    assert found.value == {"n": 2}


def test_a_lock_is_renewed_taken_over_when_expired_and_then_lost(object_store):
    objects = ObjectStore(object_store.uri)
    with write_lock(objects, "first", expiry_s=600) as first:
        with pytest.raises(InputError, match="another run is writing"):
            opened(write_lock(objects, "second", expiry_s=600))
        first.renew()
        with write_lock(objects, "second", expiry_s=-1) as second:  # nobody renewed it in time
            second.renew()
            with pytest.raises(InputError, match=r"lost .* to another writer"):
                first.renew()
            held = objects.read(LOCK)
            assert held is not None
            assert held.value["owner"] == "second"
    assert objects.read(LOCK) is None


def test_files_travel_under_keys_and_a_missing_one_is_said(object_store, tmp_path):
    objects = ObjectStore(object_store.uri)
    paths = {f"a/{number}": tmp_path / f"in-{number}" for number in range(30)}
    for key, path in paths.items():
        path.write_text(key)
    objects.upload(paths.items())
    objects.copy([("a/7", "b/7")])
    assert set(objects.keys("a")) == set(paths)
    objects.download([("b/7", tmp_path / "out")])
    assert (tmp_path / "out").read_text() == "a/7"
    objects.delete([*paths, "a/never"])
    assert list(objects.keys("a")) == []
    with pytest.raises(Gone):
        objects.download([("a/7", tmp_path / "out")])
    # Nothing above the prefix was touched or listed.
    assert boto3.session.Session().client("s3").list_objects_v2(Bucket="lake")["KeyCount"] == 1


def test_errors_say_what_is_missing(object_store, monkeypatch, tmp_path):
    def at(uri: str):
        return working_copy(uri, cache=tmp_path / "c", read_only=True)

    with pytest.raises(InputError, match="there is no bucket pond"):
        opened(at("s3://pond/music"))
    for uri in ("s3://", "s3://lake/a b", "s3://lake/a*", "s3://lake/'", "s3://lake/a//b"):
        with pytest.raises(InputError, match="expected s3://BUCKET/PREFIX"):
            opened(at(uri))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match=r"s3://lake/m cannot be used: Could not connect"):
        opened(at("s3://lake/m"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="no credentials for s3://lake/m: set AWS_ACCESS_KEY_ID"):
        opened(at("s3://lake/m"))
