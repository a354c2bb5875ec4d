"""What several commands share: the options of the same name, and how an answer is printed."""

import json
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from feature_repo.errors import InputError

Generation = Annotated[str | None, typer.Option(help="Generation id; the newest when not given.")]
ModelId = Annotated[str | None, typer.Option(help="Model id; the newest when not given.")]
LabelRule = Annotated[str, typer.Option(help="complete, favourite, replayed or sampled_negatives.")]
Epochs = Annotated[int, typer.Option(help="Passes over the training part at most.")]
BatchSize = Annotated[int, typer.Option(help="Rows of one optimizer step, over all workers.")]
LearningRate = Annotated[float, typer.Option(help="Adam's learning rate.")]
Workers = Annotated[int, typer.Option(help="Ray Train workers; 0: train in this process.")]
Gpu = Annotated[
    bool | None,
    typer.Option("--gpu/--cpu", help="One CUDA device a worker; by default if there are enough."),
]
Levels = Annotated[int, typer.Option(help="Codes in an ID.")]
Codes = Annotated[int, typer.Option(help="Codes in a codebook.")]
Length = Annotated[int, typer.Option(help="Listens kept per user.")]
Models = Annotated[str, typer.Option(help="Comma-separated; the first is the baseline.")]
Seeds = Annotated[int, typer.Option(help="Runs of each model.")]
Source = Annotated[
    str,
    typer.Option(
        help="hetrec-spotify, 30music-subset, tiktok-mm, amazon-beauty, music4all, demo-world or "
        "table."
    ),
]
SourcePath = Annotated[Path, typer.Option("--path", help="Folder of the source.")]
Mapping = Annotated[
    Path | None, typer.Option(help="Column mapping, a JSON file, for --source table.")
]
MaxRejected = Annotated[
    float, typer.Option(help="Share of unexpectedly rejected rows above which to stop.")
]


def answer(result: dict[str, Any]) -> None:
    """The command's last line: one JSON object."""
    typer.echo(json.dumps(result))


def in_this_workspace(message: str) -> str:
    """The commands that a message names or is, with the --workspace that this one was given."""
    for option, following in pairwise([*sys.argv, ""]):
        name, _, given = option.partition("=")
        if name == "--workspace":
            here = f"crescendo --workspace {shlex.quote(given or following)} "
            return here.join(re.split("(?<![^`])crescendo (?!--workspace)", message))
    return message


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """The numbers of a comma-separated list."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"{name} must be whole numbers, comma-separated, got {text!r}") from None


def names(text: str) -> tuple[str, ...]:
    """The items of a comma-separated list."""
    return tuple(name.strip() for name in text.split(","))
