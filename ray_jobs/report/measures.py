"""The table of every measure of ID quality (paper section 4), one column a family or a fit."""

from collections.abc import Sequence
from typing import Any

from ray_jobs.report.markup import Html, lines, two_lines
from ray_jobs.report.verdicts import NOTHING, number

Measures = dict[str, Any]
Row = tuple[str, str, list[object]]
"""Name, what it means, one cell a column."""


def measure_rows(columns: Sequence[Measures]) -> list[Row]:
    """Rows for what `models.sid_quality.quality` measured; n/a where a column lacks a measure.

    No rows for reference labels and co-listening that no column was given.
    """

    def by_level(measure: str, digits: int = 3) -> list[object]:
        return [
            _slashed([row.get(measure) for row in column["levels"]], digits) for column in columns
        ]

    def full(measure: str, digits: int) -> list[object]:
        return [number(column["full"][measure], digits) for column in columns]

    rows: list[Row] = [
        ("Utilisation", "share of codes in use, by level", by_level("utilisation")),
        ("Perplexity", "codes if all were used evenly, by level", by_level("perplexity", 1)),
        ("Gini", "of tracks per code: 0 even, near 1 all in a few; by level", by_level("gini")),
        ("Hourglass", "middle levels less outer: entropy, Gini, spread", _hourglass(columns)),
        ("Distinct IDs", "up to each level", by_level("distinct", 0)),
        ("Distinct full IDs", "", full("distinct", 0)),
        ("Collision rate", "1 - distinct IDs / tracks", full("collision_rate", 4)),
        ("Tracks sharing an ID", "share that is not alone with its ID", full("items_sharing", 4)),
        ("Largest group", "tracks with one ID", full("largest_group", 0)),
        ("Conditional entropy", "given the levels before, nats", by_level("conditional_entropy")),
        ("NMI to level 1", "by level", by_level("nmi_level_1")),
        ("AMI to level 1", "NMI less what chance explains", by_level("ami_level_1")),
    ]
    if any(column["levels"][0].get("nmi_reference") is not None for column in columns):
        rows += [
            ("NMI to the reference", "by level", by_level("nmi_reference")),
            ("AMI to the reference", "NMI less what chance explains", by_level("ami_reference")),
        ]
    rows += [
        ("Relative MSE", "squared error / variance, by level", by_level("relative_mse")),
        (
            "Distance preservation",
            "Kendall's tau-b of pair distances",
            [_sampled(column["distance_preservation"], "tau", "pairs") for column in columns],
        ),
        (
            "Neighbour recall",
            "nearest tracks that stay nearest",
            [_neighbours(column["neighbour_recall"]) for column in columns],
        ),
    ]
    heard = [column.get("co_listened_prefix_recall") for column in columns]
    if any(found is not None for found in heard):
        meaning = "partners with the same ID up to each level"
        rows.append(
            ("Co-listened prefix recall", meaning, [_co_listened(found) for found in heard])
        )
    return rows


def churn_rows(alignment: Measures | None, families: Sequence[str]) -> list[Row]:
    """Rows for a refit that was aligned to an earlier generation; none for another.

    `alignment` is what `quantize --align-to` recorded.
    """
    if alignment is None:
        return []
    found = [alignment["families"].get(family) for family in families]

    def shares(numbering: str) -> list[object]:
        return [NOTHING if one is None else _slashed(one[numbering], 3) for one in found]

    return [
        (
            "Tracks in both generations",
            f"this one and {alignment['to']}",
            [NOTHING if one is None else number(one["tracks"], 0) for one in found],
        ),
        ("Churn, as fitted", "share whose ID changed, up to each level", shares("raw")),
        ("Churn, aligned", "after the codes were matched", shares("aligned")),
    ]


def named(rows: Sequence[Row]) -> list[list[object]]:
    """For `markup.table`: the meaning under the name."""
    return [
        [two_lines(name, meaning) if meaning else name, *cells] for name, meaning, cells in rows
    ]


def _hourglass(columns: Sequence[Measures]) -> list[object]:
    found = [column.get("hourglass") for column in columns]
    return [
        NOTHING if gap is None else " / ".join(f"{gap[name]:+.3f}" for name in gap) for gap in found
    ]


def _sampled(found: Measures, value: str, count: str) -> Html | str:
    """A value and its standard error, and under it how many were sampled."""
    if found[value] is None:
        return NOTHING
    error = number(found.get("standard_error"), 3)
    return two_lines(f"{found[value]:.3f} (s.e. {error})", f"{found[count]:,} {count}")


def _neighbours(found: Measures) -> Html | str:
    if found["recall"] is None:
        return NOTHING
    return two_lines(
        f"{found['recall']:.3f} (s.e. {number(found['standard_error'], 3)})",
        f"{found['neighbours']} nearest of {found['searched']:,}, {found['queries']:,} queries",
    )


def _co_listened(found: Measures | None) -> Html | str:
    if found is None:
        return NOTHING
    under = [
        f"s.e. {_slashed(found['standard_error'], 4)}",
        f"by chance {_slashed(found['chance'], 4)}",
        f"{found['items']:,} tracks",
    ]
    return two_lines(_slashed(found["recall"], 4), lines(under))


def _slashed(values: Sequence[float | None], digits: int) -> str:
    return " / ".join(number(value, digits) for value in values)
