"""Artifacts are whole or absent, and a reader refuses what is missing, foreign or changed."""

import json
import os
from pathlib import Path

import pytest

from feature_repo import artifacts
from feature_repo.artifacts import (
    MANIFEST,
    Manifest,
    content_id,
    newest,
    read_manifest,
    recover,
    write_artifact,
    write_json,
)
from feature_repo.errors import ArtifactError


def write(folder, text="data", **manifest):
    made = Manifest(kind="thing", id=folder.name, **manifest)
    with write_artifact(folder, made) as partial:
        (partial / "data.txt").write_text(text)
    return made


def read(folder):
    return read_manifest(folder, kind="thing", made_by="make-thing")


def test_round_trip(tmp_path):
    written = write(tmp_path / "t-1", options={"levels": 3}, parents={"other": "o-1"})
    assert read(tmp_path / "t-1") == written


def test_a_failed_write_leaves_what_was_there(tmp_path):
    folder = tmp_path / "t-1"
    write(folder, "first")

    def fail_in_the_middle():
        with write_artifact(folder, Manifest(kind="thing", id="t-1")) as partial:
            (partial / "data.txt").write_text("second")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    assert (folder / "data.txt").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["t-1"]


@pytest.mark.parametrize("ending", [OSError("disk"), KeyboardInterrupt()])
def test_a_replacement_cut_off_between_its_renames_is_undone(tmp_path, monkeypatch, ending):
    folder = tmp_path / "t-1"
    write(folder, "first")
    rename = os.rename

    def cut_off(source, target):
        if Path(target) == folder and "first" not in (Path(source) / "data.txt").read_text():
            raise ending
        rename(source, target)

    monkeypatch.setattr(os, "rename", cut_off)
    with pytest.raises(type(ending)):
        write(folder, "second")
    assert read(folder).id == "t-1"
    assert (folder / "data.txt").read_text() == "first"


def test_a_reader_puts_back_what_a_killed_writer_had_moved_away(tmp_path):
    folder = tmp_path / "t-1"
    write(folder, "first")
    (tmp_path / ".replaced.abc").mkdir()
    folder.rename(tmp_path / ".replaced.abc" / "t-1")
    assert read(folder).id == "t-1"
    assert [path.name for path in tmp_path.iterdir()] == ["t-1"]


def test_newest_finds_what_a_killed_writer_had_moved_away(tmp_path):
    write(tmp_path / "t-1", "first")
    write(tmp_path / "t-2", "second")
    holder = tmp_path / ".replaced.t-2.abc"
    holder.mkdir()
    (tmp_path / "t-2").rename(holder / "t-2")
    assert newest(tmp_path, kind="thing", made_by="make-thing").id == "t-2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t-1", "t-2"]


def test_the_next_writer_clears_away_what_killed_ones_left(tmp_path):
    for name in (".t-1.abc", ".replaced.t-1.abc/t-1", ".t-1.xyz", ".replaced.t-1.empty"):
        (tmp_path / name).mkdir(parents=True)
    for name in (".t-2.abc", ".replaced.t-1.x.abc/t-1.x"):  # of other artifacts
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "t-1", "new")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".replaced.t-1.x.abc", ".t-2.abc", "t-1"]
    assert (tmp_path / ".replaced.t-1.x.abc" / "t-1.x").is_dir()
    assert (tmp_path / "t-1" / "data.txt").read_text() == "new"
    (tmp_path / ".replaced.t-1.empty").mkdir()
    recover(tmp_path / "t-1")
    assert not (tmp_path / ".replaced.t-1.empty").exists()


def test_a_replacement_while_it_is_read_is_not_a_changed_file(tmp_path, monkeypatch):
    """The manifest of the first, the files of the second: reads again, and finds the second."""
    folder = tmp_path / "t-1"
    write(folder, "first")
    hash_file = artifacts.file_sha256
    replacements = ["second"]

    def replace_then_hash(path):
        if replacements:
            write(folder, replacements.pop(), options={"run": 2})
        return hash_file(path)

    monkeypatch.setattr(artifacts, "file_sha256", replace_then_hash)
    assert read(folder).options == {"run": 2}


def test_writing_again_replaces_the_whole_folder(tmp_path):
    write(tmp_path / "t-1", "first")
    write(tmp_path / "t-1", "second")
    read(tmp_path / "t-1")
    assert (tmp_path / "t-1" / "data.txt").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["t-1"]


def test_missing_changed_and_foreign_are_told_apart(tmp_path):
    folder = tmp_path / "t-1"
    with pytest.raises(ArtifactError, match=r"no thing t-1.*crescendo make-thing"):
        read(folder)
    write(folder)
    (folder / "data.txt").write_text("dat4")
    with pytest.raises(ArtifactError, match=r"data\.txt was changed"):
        read(folder)
    (folder / "data.txt").unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file data\.txt"):
        read(folder)
    write(folder)
    folder.rename(tmp_path / "t-2")
    with pytest.raises(ArtifactError, match=r"holds thing t-1; wanted thing t-2"):
        read(tmp_path / "t-2")
    (tmp_path / "t-2" / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="is not a manifest"):
        read(tmp_path / "t-2")


def test_newest_is_the_last_made(tmp_path):
    write(tmp_path / "t-b")
    write(tmp_path / "t-a")
    assert newest(tmp_path, kind="thing", made_by="make-thing").id == "t-a"
    with pytest.raises(ArtifactError, match="run `crescendo make-thing` first"):
        newest(tmp_path / "nowhere", kind="thing", made_by="make-thing")


def test_content_id_depends_on_content_and_its_division():
    assert content_id("x", b"ab", b"c") == content_id("x", b"ab", b"c")
    assert content_id("x", b"ab", b"c") != content_id("x", b"a", b"bc")
    assert content_id("x", {"a": 1, "b": 2}) == content_id("x", {"b": 2, "a": 1})


def test_write_json_replaces_whole(tmp_path):
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert len(list(path.parent.iterdir())) == 1
