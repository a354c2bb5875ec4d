"""What a study of MME-SID's claims found, as cells of tables: for the page and for the terminal.

`print_claims(answers)` prints what `ray_jobs.mme_claims.answer` returned.
"""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ray_jobs.mme_claims import GAIN, PROJECTED_RANK, RANK

RANKING = ("hr@5", "ndcg@5", "hr@10", GAIN, "hr@20", "ndcg@20")
NAMES = {RANK: "effective rank", "codes_tau": "codes' tau", "ids_tau": "trained IDs' tau"}
CLAIM_HEADS = ["Claimed larger", "than", "by", "difference", "95% interval", "verdict"]
NARROWEST = 160
"""Columns of the printed tables, where there is no terminal that says otherwise."""


def measure_name(measure: str) -> str:
    """In words; a tau with its family, an effective rank with its table."""
    kind, _, family = measure.partition(":")
    name = NAMES.get(kind, kind.replace("hr@", "HR@").replace("ndcg@", "nDCG@"))
    return f"{name}, {family}" if family else name


def digits_of(measure: str) -> int:
    return 1 if measure.startswith(RANK) else 4


def claim_cells(claim: dict[str, Any]) -> list[str]:
    """One direction, under CLAIM_HEADS."""
    measure = claim["measure"]
    digits = digits_of(measure)
    ends = claim["interval"]
    interval = "none" if ends is None else f"{ends[0]:+.{digits}f} to {ends[1]:+.{digits}f}"
    return [
        f"{claim['more']} ({claim['more_mean']:.{digits}f})",
        f"{claim['less']} ({claim['less_mean']:.{digits}f})",
        measure_name(measure),
        f"{claim['difference']:+.{digits}f}",
        interval,
        claim["verdict"],
    ]


def diagnostics_of(found: dict[str, Any]) -> list[str]:
    """The effective rank and every tau that a variant of this world has."""
    measures = [RANK, PROJECTED_RANK]
    for summary in found["variants"].values():
        measures += [one for one in summary["measures"] if "_tau:" in one and one not in measures]
    return measures


def variant_cells(
    found: dict[str, Any], measures: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Heads, and a line a variant that has any of the measures: means over seeds."""
    rows = []
    for name, summary in found["variants"].items():
        cells = [name]
        for one in measures:
            value = summary["measures"].get(one)
            cells.append("" if value is None else f"{value['mean']:.{digits_of(one)}f}")
        if any(cells[1:]):
            rows.append(cells)
    return ["Variant", *map(measure_name, measures)], rows


def print_claims(answers: dict[str, dict[str, Any]]) -> None:
    """Three tables a world on standard output: directions, ranking, diagnostics."""
    console = Console(highlight=False, markup=False)
    # Away from a terminal the width is a guess, and a cut number would be worse than a long line.
    console.width = max(NARROWEST, console.width)
    for world, found in answers.items():
        seeds = f"{len(found['seeds'])} seeds"
        rows = [claim_cells(claim) for claim in found["claims"]]
        _print(console, f"{world}: directions, {seeds}", CLAIM_HEADS, rows, words=3)
        _print(console, f"{world}: ranking, {seeds}", *variant_cells(found, RANKING))
        shown = diagnostics_of(found)
        _print(console, f"{world}: diagnostics, {seeds}", *variant_cells(found, shown))


def _print(
    console: Console, title: str, heads: list[str], rows: list[list[str]], *, words: int = 1
) -> None:
    """`words`: columns that are no numbers, hence stand left."""
    table = Table(box=SIMPLE_HEAD, title=Text(title), title_justify="left")
    for place, name in enumerate(heads):
        table.add_column(name, overflow="fold", justify="left" if place < words else "right")
    for cells in rows:
        table.add_row(*map(Text, cells))
    console.print(table)
