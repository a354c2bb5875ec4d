"""What the quality measures say, in words and as a table on standard output.

`print_quality(families)` prints, for each family, this generation's IDs beside RQ and the literal
PSRQ, then the findings. The page uses the same words.
"""

from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ray_jobs.quality_comparison import FamilyQuality, headline
from ray_jobs.report.verdicts import NARROWEST, NOTHING, number

THESE = "these IDs"
UNUSED_CODES = 0.1
"""A level that leaves more than this share of its codes unused is named."""
REPEATS = 0.8
"""A level whose AMI with level 1 is above this repeats it."""
SILENT = 0.5
"""IDs whose deeper levels leave more than this share of what they could say unsaid are named."""
SHARING = 0.5
"""IDs that more than this share of the tracks share with another are named."""
LEAST_KEPT = 0.005
"""AMI of RQ below which PSRQ's is not told as a multiple of it."""
NARROW = 0.05
"""Middle levels whose entropy, as a share of log K, is so much below the outer ones' are named."""

HEADLINES = (
    ("ami_reference", "Kept: AMI to the reference", "mean of the deeper levels", 3),
    ("ami_level_1", "AMI to level 1", "likewise; 1 is a copy", 3),
    ("items_sharing", "Tracks sharing an ID", "that the ID alone cannot tell apart", None),
    ("distinct_codes", "Distinct IDs", "", 0),
    ("unused", "Information not given", "of what the deeper levels could", None),
    ("relative_mse", "Relative MSE", "squared error / variance, all levels", 4),
    ("neighbour_recall", "Neighbour recall", "nearest tracks that stay nearest", 3),
    ("recall_error", "Its standard error", "over sampled tracks", 3),
)
"""Headline numbers: key, name, meaning, digits (None: a percentage)."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """IDs that are compared: `weight` None for a method without a prefix weight."""

    name: str
    weight: float | None
    measures: dict[str, Any]

    def cells(self) -> list[str]:
        """The prefix weight, and the headline numbers in their order."""
        found = headline(self.measures)
        weight = NOTHING if self.weight is None else f"{self.weight:.3g}"
        return [
            weight,
            *(
                percent(found[key]) if digits is None else number(found[key], digits)
                for key, _, _, digits in HEADLINES
            ),
        ]


def columns(family: FamilyQuality) -> list[Column]:
    """This generation's IDs and what they are compared with; all measured on the same rows."""
    comparison = family.comparison
    if comparison is None:
        return [Column(name=THESE, weight=None, measures=family.measures)]
    found = [
        Column(name=THESE, weight=comparison.own_weight, measures=comparison.measures),
        Column(name="RQ", weight=0.0, measures=comparison.rq.measures),
    ]
    chosen, literal = comparison.chosen, comparison.literal
    if chosen.measures != comparison.measures:
        found.append(Column(name="auto", weight=chosen.weight, measures=chosen.measures))
    return [
        *found,
        Column(name="literal", weight=literal.weight, measures=literal.measures),
    ]


def percent(share: float | None) -> str:
    return number(None, 1) if share is None else f"{share:.1%}"


def reference_name(family: FamilyQuality) -> str:
    found = family.reference
    if found.kind == "tags":
        return f"{found.labels:,} tags of the catalogue"
    return f"{found.labels:,} clusters of the vectors"


def findings(family: FamilyQuality) -> list[str]:
    """What the prefix buys and costs, then what should be looked at; one sentence each."""
    return [*_bought(family), *_warnings(family)]


def _bought(family: FamilyQuality) -> list[str]:
    comparison = family.comparison
    if comparison is None:
        return ["The IDs have one level: there is no prefix to weigh."]
    own = headline(comparison.measures)
    rq, literal = headline(comparison.rq.measures), headline(comparison.literal.measures)
    kept = (
        f"Kept: the deeper levels' AMI with {reference_name(family)} is "
        f"{number(own['ami_reference'], 3)}{_times(own, rq, 'ami_reference')} RQ's "
        f"{number(rq['ami_reference'], 3)}; the literal PSRQ's is "
        f"{number(literal['ami_reference'], 3)}."
    )
    ours, plain, paper = (percent(found["items_sharing"]) for found in (own, rq, literal))
    paid = f"Paid: {ours} of tracks share their ID; with RQ {plain}, with the literal PSRQ {paper}."
    if rq["relative_mse"] and own["relative_mse"] is not None:
        more, most = (found["relative_mse"] / rq["relative_mse"] - 1 for found in (own, literal))
        paid += f" Squared error {more:+.1%} against RQ; the literal PSRQ {most:+.1%}."
    return [kept, paid]


def _times(own: dict[str, Any], rq: dict[str, Any], key: str) -> str:
    """How much larger, where RQ's is large enough to be divided by."""
    told = own[key] is not None and rq[key] is not None and rq[key] > LEAST_KEPT
    return f", {own[key] / rq[key]:.1f} times" if told else " against"


def _warnings(family: FamilyQuality) -> list[str]:
    measures, found = family.measures, []
    weighed = family.method == "psrq"
    for row in measures["levels"]:
        if row["utilisation"] < 1 - UNUSED_CODES:
            found.append(
                f"Level {row['level']} leaves {1 - row['utilisation']:.0%} of its "
                f"{row['codes']:,} codes unused."
            )
        if row["level"] > 1 and row["ami_level_1"] > REPEATS:
            found.append(
                f"Level {row['level']} repeats level 1 (AMI {row['ami_level_1']:.2f})"
                + (": a lower prefix weight lets it say something of its own." if weighed else ".")
            )
    head = headline(measures)
    if head["unused"] is not None and head["unused"] > SILENT:
        found.append(
            f"The levels after the first give only {1 - head['unused']:.0%} of the information "
            "that they could."
        )
    if head["items_sharing"] > SHARING:
        found.append(
            f"{head['items_sharing']:.0%} of tracks share their ID with another (the largest group "
            f"has {measures['full']['largest_group']:,}): more codes or levels"
            f"{', or a lower prefix weight,' if weighed else ''} tell them apart."
        )
    gap = measures["hourglass"]
    if gap is not None and gap["entropy"] < -NARROW:
        found.append(
            f"An hourglass: the middle levels' entropy is {-gap['entropy']:.2f} log K below the "
            "outer ones'."
        )
    return found


def print_quality(families: list[FamilyQuality]) -> None:
    """The headline numbers of all families in one table, then the findings."""
    console = Console(highlight=False, markup=False)
    # Away from a terminal the width is a guess, and a cut name would be worse than a long line.
    console.width = max(NARROWEST, console.width)
    for family in families:
        shown = columns(family)
        table = Table(box=SIMPLE_HEAD, title=Text(family.name), title_justify="left")
        table.add_column("", overflow="fold")
        for column in shown:
            table.add_column(column.name, justify="right", no_wrap=True)
        names = ["Prefix weight", *(name for _, name, _, _ in HEADLINES)]
        for name, *values in zip(names, *(column.cells() for column in shown), strict=True):
            table.add_row(name, *values)
        console.print(table)
        for sentence in findings(family):
            console.print(sentence, soft_wrap=True)
        console.print()
