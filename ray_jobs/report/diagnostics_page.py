"""Pages and printed tables of `crescendo collapse` and `crescendo forgetting`."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.collapse import COLLAPSED, Spectrum
from models.forgetting import Taus
from ray_jobs.report.markup import Section, table
from ray_jobs.report.mme_page import spectrum_curves, tau_bars
from ray_jobs.report.page import page, write_page
from ray_jobs.report.verdicts import number

COLLAPSE_HEADS = ["Table", "tracks", "dims", "effective rank", "stable rank", "collapsed dims"]
TAU_HEADS = ["Space", "nearness", "Kendall's tau", "spread over users", "users", "left out"]
NARROWEST = 100


def write_collapse_page(path: Path, name: str, spectra: dict[str, Spectrum]) -> None:
    head = Section("Embedding collapse")
    head.say(f"Spectra of the tables of {name}, as they are, not centred.")
    section = Section("Spectra")
    section.say(
        "Effective rank: how many dims of equal singular values have the entropy of these. Stable "
        "rank: the squared values over the largest one's. Collapsed: dims whose value is at most "
        f"{COLLAPSED:g} of the largest."
    )
    section.parts.append(table("Spectra", COLLAPSE_HEADS, collapse_cells(spectra)))
    section.charts(
        [
            (
                "spectra",
                "Spectrum of each table.",
                "Each dim's share of the singular values, largest first. A line that falls early "
                "has collapsed onto few dims.",
                spectrum_curves({name: one.shares_D.tolist() for name, one in spectra.items()}),
            )
        ],
        wide=True,
    )
    write_page(path, page(head, [section]))


def write_forgetting_page(path: Path, name: str, taus: dict[str, dict[str, Taus]]) -> None:
    head = Section("Forgetting")
    head.say(
        f"What the learned spaces of {name} keep of the original ones: Kendall's tau of each "
        "user's history, ordered by nearness to the test target. 1 keeps the order, 0 nothing."
    )
    section = Section("Kendall's tau")
    section.parts.append(table("Kendall's tau", TAU_HEADS, tau_cells(taus)))
    bars: dict[str, dict[str, float]] = {}
    for space, of_space in taus.items():
        for by, one in of_space.items():
            bars.setdefault(f"by {by}", {})[space] = one.mean
    section.charts(
        [("taus", "Mean over users.", "Higher is more kept.", tau_bars(bars))], wide=True
    )
    write_page(path, page(head, [section]))


def collapse_cells(spectra: dict[str, Spectrum]) -> list[list[str]]:
    return [
        [
            name,
            f"{one.rows:,}",
            f"{len(one.singular_values_D):,}",
            f"{one.effective_rank:.1f}",
            f"{one.stable_rank:.1f}",
            f"{one.collapsed_share:.1%}",
        ]
        for name, one in spectra.items()
    ]


def tau_cells(taus: dict[str, dict[str, Taus]]) -> list[list[str]]:
    return [
        [
            space,
            by,
            number(one.mean),
            number(one.spread),
            f"{len(one.defined_U):,}",
            f"{one.left_out:,}",
        ]
        for space, of_space in taus.items()
        for by, one in of_space.items()
    ]


def print_collapse(spectra: dict[str, Spectrum]) -> None:
    _print(COLLAPSE_HEADS, collapse_cells(spectra), words=1)


def print_forgetting(taus: dict[str, dict[str, Taus]]) -> None:
    _print(TAU_HEADS, tau_cells(taus), words=2)


def _print(heads: list[str], rows: list[list[str]], *, words: int) -> None:
    """`words`: columns that are no numbers, hence stand left."""
    console = Console(highlight=False, markup=False)
    # Away from a terminal the width is a guess, and a cut name would be worse than a long line.
    console.width = max(NARROWEST, console.width)
    shown = Table(box=SIMPLE_HEAD)
    for place, name in enumerate(heads):
        shown.add_column(name, overflow="fold", justify="left" if place < words else "right")
    for cells in rows:
        shown.add_row(*map(Text, cells))
    console.print(shown)
