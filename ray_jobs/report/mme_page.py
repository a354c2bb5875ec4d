"""The page of a study of MME-SID's claims: what each says, what was found, and the figures.

Written by `crescendo mme-study` and `benchmarks/mme_claims.py answer`, from what
`ray_jobs.mme_claims.answer` returns.
"""

import html
from pathlib import Path
from typing import Any

from ray_jobs.bootstrap import COVERAGE, DRAWS
from ray_jobs.mme_claims import GAIN, NOT_SHOWN, RANK, REPRODUCED, REVERSED
from ray_jobs.report.markup import Section, element, table, two_lines
from ray_jobs.report.mme_tables import (
    RANKING,
    claim_cells,
    diagnostics_of,
    measure_name,
    variant_cells,
)
from ray_jobs.report.page import page, write_page
from ray_jobs.report.plotting import BLUE, FAMILY_COLOURS, Figure, axis, figure, line_style

HOW = (
    f"Runs of one seed are paired, and so are their users. nDCG and Kendall's tau are tested by a "
    f"bootstrap over users and seeds ({DRAWS:,} draws), effective ranks by a t interval over "
    f"seeds; a direction is reproduced where the {COVERAGE:.0%} interval of the difference lies on "
    "the claimed side of 0, reversed where it lies on the other. Of twenty directions that are not "
    "so, one is misjudged by chance."
)
NET = (
    "The language model is a small Llama with random weights, trained whole: these runs compare "
    "inputs under one net, and say nothing of what a pretrained language model adds."
)


def write_mme_page(path: Path, answers: dict[str, dict[str, Any]]) -> None:
    """Writes the page of all worlds."""
    head = Section("Do MME-SID's claims hold here?")
    head.say(NET)
    head.say(HOW)
    write_page(path, page(head, [_section(name, found) for name, found in answers.items()]))


def _section(world: str, found: dict[str, Any]) -> Section:
    section = Section(world)
    section.say(
        f"{found['users']:,} test users, seeds {', '.join(map(str, found['seeds']))}; families: "
        f"{', '.join(found['families'])}. Leave-last-out, ranked among all items, history masked."
    )
    verdicts = [claim["verdict"] for claim in found["claims"]]
    counted = [f"{verdicts.count(one)} {one}" for one in (REPRODUCED, NOT_SHOWN, REVERSED)]
    section.say(f"Of {len(verdicts)} directions {', '.join(counted)}.")
    section.parts.append(
        table(
            f"{world}: directions",
            ["Claimed larger, than what", "verdict", f"difference, {COVERAGE:.0%} interval"],
            [_claim_row(claim) for claim in found["claims"]],
        )
    )
    for name, measures in (("ranking", RANKING), ("diagnostics", diagnostics_of(found))):
        heads, rows = variant_cells(found, measures)
        section.parts.append(table(f"{world}: {name}", heads, rows))
    spectra = {
        name: summary["spectrum"]
        for name, summary in found["variants"].items()
        if summary["spectrum"]
    }
    if spectra:
        section.charts(
            [
                (
                    f"spectrum-{world}",
                    "Spectrum of what the language model reads.",
                    "Each dim's share of the singular values, largest first. A line that falls "
                    "early has collapsed onto few dims.",
                    spectrum_curves(spectra),
                )
            ],
            wide=True,
        )
        section.charts(
            [
                (
                    f"tau-{world}",
                    "What is kept of the original order.",
                    "Kendall's tau of each user's history by nearness to the target, mean over "
                    "users and seeds; 1 keeps all. Codes: as quantized. IDs: once trained.",
                    _taus(found),
                ),
                (
                    f"gain-{world}",
                    "nDCG@10 of every run.",
                    "A point a seed; right is better.",
                    _points(found, GAIN),
                ),
                (
                    f"rank-{world}",
                    "Effective rank of every run.",
                    "Of the table that the language model reads; a point a seed.",
                    _points(found, RANK),
                ),
            ]
        )
    return section


def _claim_row(claim: dict[str, Any]) -> list[object]:
    """Three columns: the verdict is in sight on a narrow screen too."""
    more, less, measure, difference, interval, verdict = claim_cells(claim)
    return [
        two_lines(f"{more}, {less}", f"{measure}; {claim['source']}"),
        element("b", verdict),
        two_lines(difference, interval),
    ]


def spectrum_curves(spectra: dict[str, list[float]]) -> Figure:
    """A line a table, over the dims, on a logarithmic axis."""
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": html.escape(name),
            "x": list(range(1, len(shares) + 1)),
            # A logarithm has no 0: what is below is off the plot.
            "y": [share if share > 0 else None for share in shares],
            "line": line_style(FAMILY_COLOURS, place),
            "hovertemplate": f"{html.escape(name)}, dim %{{x}}: %{{y:.2%}}<extra></extra>",
        }
        for place, (name, shares) in enumerate(spectra.items())
    ]
    y_axis = axis("share of the singular values") | {"type": "log", "range": [-5, 0]}
    return figure(data, axis("dim, largest first"), y_axis)


def tau_bars(taus: dict[str, dict[str, float]]) -> Figure:
    """Bars of tau: a group a table, a colour a series (series -> table -> tau)."""
    data = [
        {
            "type": "bar",
            "name": html.escape(series),
            "x": [html.escape(name) for name in of_series],
            "y": list(of_series.values()),
            "marker": {"color": FAMILY_COLOURS[place % len(FAMILY_COLOURS)]},
            "hovertemplate": f"%{{x}}, {html.escape(series)}: %{{y:.3f}}<extra></extra>",
        }
        for place, (series, of_series) in enumerate(taus.items())
    ]
    return figure(data, axis("") | {"type": "category"}, axis("Kendall's tau", from_zero=True))


def _taus(found: dict[str, Any]) -> Figure:
    series: dict[str, dict[str, float]] = {}
    for variant, summary in found["variants"].items():
        for name, of_measure in summary["measures"].items():
            if "_tau:" in name:
                series.setdefault(measure_name(name), {})[variant] = of_measure["mean"]
    return tau_bars(series)


def _points(found: dict[str, Any], measure: str) -> Figure:
    shown = [
        (html.escape(variant), summary["measures"][measure]["per_seed"])
        for variant, summary in found["variants"].items()
        if measure in summary["measures"]
    ]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "showlegend": False,
            "x": [value for _, values in shown for value in values],
            "y": [name for name, values in shown for _ in values],
            "orientation": "h",
            "cliponaxis": False,
            "marker": {"color": BLUE, "size": 8, "opacity": 0.7},
            "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
        }
    ]
    y_axis = axis("") | {"type": "category", "autorange": "reversed"}
    return figure(data, axis(measure_name(measure)), y_axis)
