"""The command line as a user meets it: help, exit codes, errors that name the fix."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.commands.options import in_this_workspace

BIN = Path(sys.executable).parent / "crescendo"


def crescendo(*arguments, cwd):
    return subprocess.run([BIN, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_help_imports_nothing_heavy():
    """What makes `--help` slow is an import: none of the heavy ones may happen for it."""
    code = (
        "import sys; sys.argv = ['crescendo', '--help']\n"
        "from ray_jobs import cli\n"
        "try: cli.app()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'feast', 'pandas', 'transformers', 'librosa', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "quantize" in ended.stdout
    assert ended.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["quantize"], "crescendo embed"),
        (["sequences"], "crescendo"),
        (["release"], "crescendo train"),
        (["rank", "--user", "1", "--candidates", "1,x"], "candidates must be track ids"),
        (["serve", "--uvicorn", "--replicas", "2"], "leave --fast and --replicas out"),
        (["serve", "--grpc-port", "9000"], "grpc_port is for --uvicorn"),
        (["serve", "--key", "server.key"], "key is for --uvicorn"),
        (["quantize", "--prefix-weight", "heavy"], "prefix_weight must be auto or a number"),
        (["train", "--model", "wide"], "model must be one of"),
        (["ingest", "--source", "nowhere", "--path", "."], "source"),
        (["quantize", "--levels", "x"], "Invalid value for '--levels'"),
        (["frobnicate"], "No such command"),
    ],
)
def test_wrong_input_ends_with_2_and_says_what_fixes_it(tmp_path, arguments, reason):
    ended = crescendo(*arguments, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_last_line_is_json(tmp_path):
    (tmp_path / "tracks.csv").write_text("song,name\na,First\nb,Second\n")
    (tmp_path / "plays.csv").write_text("who,song,at\nu1,a,1700000000\nu2,b,1700000100\n")
    mapping = {
        "tracks": {"path": "tracks.csv", "columns": {"track_id": "song", "title": "name"}},
        "events": {
            "path": "plays.csv",
            "columns": {"user_id": "who", "track_id": "song", "event_timestamp": "at"},
            "timestamp_unit": "s",
            "default_action": "play",
        },
    }
    (tmp_path / "mapping.json").write_text(json.dumps(mapping))
    ended = crescendo(
        *("ingest", "--source", "table", "--path", ".", "--mapping", "mapping.json"), cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout.splitlines()[-1])
    assert (answer["tracks"], answer["events"], answer["users"]) == (2, 2, 2)
    again = crescendo("sequences", cwd=tmp_path)
    assert json.loads(again.stdout.splitlines()[-1])["users"] == 2


@pytest.mark.parametrize("given", [["--workspace", "a b"], ["--workspace=a b"]])
def test_commands_in_messages_are_for_the_workspace_of_this_one(monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["crescendo", *given, "embed"])
    here = "crescendo --workspace 'a b' embed"
    assert in_this_workspace("crescendo embed") == here
    twice = "run `crescendo embed`, not crescendo's, then `crescendo embed`"
    assert in_this_workspace(twice) == f"run `{here}`, not crescendo's, then `{here}`"
    assert in_this_workspace(f"`{here}`") == f"`{here}`"
    monkeypatch.setattr(sys, "argv", ["crescendo", "embed"])
    assert in_this_workspace("crescendo embed") == "crescendo embed"


SMALL_DISK = """
mount -t tmpfs -o size=1m none "$1" || exit 77
"$2" --workspace "$1/ws" ingest --source table --path "$3" --mapping "$3/mapping.json"
echo "rc $?"
find "$1" -type f
"""


def test_a_full_disk_is_named_and_nothing_half_written_is_left(tmp_path):
    """On a real file system of 1 MiB, mounted in a namespace that ends with the command."""
    source, disk = tmp_path / "source", tmp_path / "disk"
    source.mkdir()
    disk.mkdir()
    titles = np.random.default_rng(0).bytes(30 * 40_000).hex()
    tracks = {"id": range(40_000), "name": [titles[60 * i : 60 * (i + 1)] for i in range(40_000)]}
    pq.write_table(pa.table(tracks), source / "tracks.parquet")
    events = {"user": [1], "track": [1], "ts": [1_600_000_000]}
    pq.write_table(pa.table(events), source / "events.parquet")
    mapping = {
        "tracks": {"path": "tracks.parquet", "columns": {"track_id": "id", "title": "name"}},
        "events": {
            "path": "events.parquet",
            "columns": {"user_id": "user", "track_id": "track", "event_timestamp": "ts"},
            "timestamp_unit": "s",
            "default_action": "play",
        },
    }
    (source / "mapping.json").write_text(json.dumps(mapping))
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    ended = subprocess.run(
        ["unshare", "--mount", *own, "sh", "-c", SMALL_DISK, "sh", disk, BIN, source],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if ended.returncode == 77 or "unshare failed" in ended.stderr:
        pytest.skip(f"no file system can be mounted here: {ended.stderr.strip()}")
    assert ended.stdout.splitlines() == ["rc 1"]
    assert "No space left on device; make room on the workspace's disk" in ended.stderr
    assert "Traceback" not in ended.stderr
