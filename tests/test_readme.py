"""README.md names commands, options and files that exist."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer.main

from feature_repo.workspace import Workspace
from ray_jobs.cli import app
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from tests.embedded import clustered, write_catalogue

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
EVERY = ("README.md", "feature_repo/README.md", "benchmarks/README.md")


def test_every_command_in_it_exists_and_every_command_is_in_it():
    commands = typer.main.get_command(app).commands
    called = re.findall(r"crescendo (?:--workspace \S+ )?([a-z]+(?:-[a-z]+)*)", TEXT)
    assert set(called) <= set(commands) | {"turns"}
    for name in commands:
        assert re.search(rf"`[^`]*\b{name}\b[^`]*`", TEXT), f"README.md does not name {name}"


@pytest.mark.parametrize("name", EVERY)
def test_every_option_in_it_exists(name):
    group = typer.main.get_command(app)
    every = [group, *group.commands.values()]
    every += [sub for c in group.commands.values() for sub in getattr(c, "commands", {}).values()]
    known = {option for c in every for p in c.params for option in (*p.opts, *p.secondary_opts)}
    known |= {"--help", "--quick", "--repo"}  # the last are the benchmarks' and the other team's
    text = (ROOT / name).read_text()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) <= known


def test_every_file_in_its_tree_lies_where_the_tree_says():
    tree = TEXT[TEXT.index("## Where things are") :]
    parts = re.split(r"^    (\w+)/ ", tree, flags=re.M)[1:]
    assert set(parts[::2]) >= {"feature_repo", "models", "ray_jobs", "serving", "tests"}
    for folder, text in zip(parts[::2], parts[1::2], strict=True):
        lines = [line for line in text.splitlines() if line.startswith("      ")]
        for name in re.findall(r"\b\w+(?:\.py\b|/)", "\n".join(lines)):
            assert (ROOT / folder / name).exists(), f"{folder}/{name}"


@pytest.mark.parametrize("name", EVERY)
def test_every_path_in_it_exists(name):
    folders = "benchmarks|deploy|feature_repo|models|ray_jobs|serving|tests"
    paths = re.findall(rf"(?<![\w/.-])(?:{folders})/\w[\w./-]*\w", (ROOT / name).read_text())
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_figure_is_filled_in():
    assert not re.findall(r"@[A-Z]+@", TEXT)


def test_its_codebook_lines_give_the_published_codes(tmp_path, monkeypatch):
    vectors = clustered(60, {"text": 8, "audio": 5})
    workspace = Workspace(tmp_path / "workspace")
    write_catalogue(workspace, vectors)
    made = quantize(workspace, QuantizeOptions(codes=8))
    part = TEXT[TEXT.index("### Codebooks elsewhere") :]
    lines = re.search(r"(?:^    .*\n|^\n)+", part[part.index("    from pathlib") :], re.M).group()
    lines = textwrap.dedent(lines).replace("CODEBOOK", made["codebook_ids"]["joint"])
    monkeypatch.chdir(tmp_path)
    found = {f"{name}_vectors": rows for name, rows in vectors.items()}
    exec(lines, found)
    table = pq.read_table(workspace.generations / made["generation_id"] / "ids.parquet")
    np.testing.assert_array_equal(found["codes"], table["joint_sid"].to_pylist())
    assert found["x_hat"].shape == found["x"].shape == (60, 13)
