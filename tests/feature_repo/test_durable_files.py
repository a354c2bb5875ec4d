"""A replaced file is the new one or the old one, and nothing is left beside it."""

import os
import socket
import stat
import threading

import pytest

from feature_repo.durable_files import make_folder, replacing


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_leaves_what_was_there_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as stream:
        stream.writelines([b"half", "of text"])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_process_left_lends_neither_its_bytes_nor_its_mode(tmp_path):
    left = tmp_path / f".secret.{socket.gethostname()}.{threading.get_native_id()}"
    left.write_text("longer than what comes")
    left.chmod(0o644)
    with replacing(tmp_path / "secret", mode=0o600) as stream:
        stream.write(b"s")
    assert (tmp_path / "secret").read_text() == "s"
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert not left.exists()


def test_folders_are_made_with_their_parents(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
