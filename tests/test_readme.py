"""README.md names commands, options and files that exist."""

import re
from pathlib import Path

import typer.main

from ray_jobs.cli import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_every_command_in_it_exists_and_every_command_is_in_it():
    commands = typer.main.get_command(app).commands
    called = re.findall(r"crescendo (?:--workspace \S+ )?([a-z]+)\b", TEXT)
    assert set(called) <= set(commands) | {"turns"}
    for name in commands:
        assert re.search(rf"`[^`]*\b{name}\b[^`]*`", TEXT), f"README.md does not name {name}"


def test_every_option_in_it_exists():
    commands = typer.main.get_command(app).commands
    known = {option for c in commands.values() for p in c.params for option in p.opts}
    known |= {"--workspace", "--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) <= known


def test_every_file_in_its_tree_exists():
    tree = TEXT[TEXT.index("## Where things are") :]
    names = re.findall(r"\b[a-z_]+\.py\b", tree)
    files = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert set(names) <= files


def test_every_figure_is_filled_in():
    assert not re.findall(r"@[A-Z]+@", TEXT)
