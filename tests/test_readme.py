"""README.md names commands, options and files that exist."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import typer.main

from feature_repo.workspace import Workspace
from ray_jobs.cli import app
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from tests.embedded import clustered, write_catalogue

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_every_command_in_it_exists_and_every_command_is_in_it():
    commands = typer.main.get_command(app).commands
    called = re.findall(r"crescendo (?:--workspace \S+ )?([a-z]+(?:-[a-z]+)*)", TEXT)
    assert set(called) <= set(commands) | {"turns"}
    for name in commands:
        assert re.search(rf"`[^`]*\b{name}\b[^`]*`", TEXT), f"README.md does not name {name}"


def test_every_option_in_it_exists():
    group = typer.main.get_command(app)
    every = [group, *group.commands.values()]
    every += [sub for c in group.commands.values() for sub in getattr(c, "commands", {}).values()]
    known = {option for c in every for p in c.params for option in (*p.opts, *p.secondary_opts)}
    known |= {"--help", "--quick"}  # the second is the benchmarks'
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", TEXT)) <= known


def test_every_file_in_its_tree_exists():
    tree = TEXT[TEXT.index("## Where things are") :]
    names = re.findall(r"\b[a-z_]+\.py\b", tree)
    files = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert set(names) <= files


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
