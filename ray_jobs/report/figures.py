"""The report's plots, as the plain dicts that plotly.js draws.

Names from data are escaped: plotly reads tags in its labels.
"""

import html
from typing import Any

from models.ranking_metrics import CalibrationBin
from ray_jobs.report.listening import Listening
from ray_jobs.report.plotting import (
    ACTION_COLOURS,
    FAMILY_COLOURS,
    GREY,
    LEVEL_COLOURS,
    MOST_TICKS,
    OCHRE,
    SYMBOLS,
    Figure,
    axis,
    figure,
    line_style,
    model_style,
)
from ray_jobs.report.readings import Family
from ray_jobs.report.runs import Run, Slice


def usage(family: Family) -> Figure:
    """Tracks per code, most used first, one line a level."""
    data: list[Figure] = []
    for level, counts_K in enumerate(family.counts_LK):
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"level {level + 1}",
                "x": list(range(1, len(counts_K) + 1)),
                "y": list(counts_K),
                "line": line_style(LEVEL_COLOURS, level),
                "hovertemplate": "code number %{x} by use: %{y:,d} tracks<extra></extra>",
            }
        )
    codes = len(family.counts_LK[0])
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "even use",
            "x": [1, codes],
            "y": [family.tracks / codes] * 2,
            "line": {"color": GREY, "width": 1, "dash": "dot"},
            "hovertemplate": "even use: %{y:,.1f} tracks a code<extra></extra>",
        }
    )
    return figure(data, axis("codes, most used first"), axis("tracks per code", from_zero=True))


def by_level(families: tuple[Family, ...], measure: str, y_axis: Figure) -> Figure:
    """One measure of `quality` at each level, a line a family."""
    data: list[Figure] = []
    deepest = 1
    for place, family in enumerate(families):
        if family.quality is None:
            continue
        levels = family.quality["levels"]
        deepest = max(deepest, len(levels))
        data.append(_level_line(family.name, levels, measure, place, dash=None))
        # NMI to level 1 has the reference labels beside it, where they were given.
        if measure == "nmi_level_1" and any(row["nmi_reference"] is not None for row in levels):
            name = f"{family.name}, reference"
            data.append(_level_line(name, levels, "nmi_reference", place, dash="dot"))
    x_axis = axis("level") | {"dtick": 1, "range": [0.7, deepest + 0.3]}
    return figure(data, x_axis, y_axis)


def share_axis(title: str) -> Figure:
    return axis(title) | {"range": [-0.02, 1.05]}


def entropy_axis() -> Figure:
    return axis("added entropy, nats", from_zero=True)


def error_axis() -> Figure:
    return axis("squared error / variance", from_zero=True)


def curve(runs: tuple[Run, ...], measure: str, y_title: str) -> Figure:
    """One measure by epoch, a line a run; runs of one kind share colour, dash and legend entry."""
    data: list[Figure] = []
    kinds: list[str] = []
    for run in runs:
        first = run.kind not in kinds
        kinds += [run.kind] if first else []
        style = model_style(run.kind, kinds)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": html.escape(run.kind),
                "legendgroup": html.escape(run.kind),
                "showlegend": first,
                "x": [row["epoch"] + 1 for row in run.curve],
                "y": [row[measure] for row in run.curve],
                "line": {"color": style["color"], "dash": style["dash"], "width": 2},
                "marker": {"color": style["color"], "symbol": style["symbol"], "size": 7},
                "hovertemplate": f"{html.escape(run.kind)}, seed {run.seed}, epoch %{{x}}: "
                f"%{{y:.4f}}<extra>{html.escape(run.model_id)}</extra>",
            }
        )
    epochs = max((len(run.curve) for run in runs), default=1)
    ticks = {"dtick": 1} if epochs <= MOST_TICKS else {}
    return figure(data, axis("epoch") | ticks, axis(y_title))


def calibration(bins: dict[str, list[CalibrationBin]]) -> Figure:
    """Mean score against share of positives, a line a model, and the diagonal."""
    data: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "perfect",
            "x": [0, 1],
            "y": [0, 1],
            "line": {"color": GREY, "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    for kind, rows in bins.items():
        style = model_style(kind, list(bins))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": html.escape(kind),
                "x": [row.mean_score for row in rows],
                "y": [row.mean_label for row in rows],
                "customdata": [row.count for row in rows],
                "line": {"color": style["color"], "dash": style["dash"], "width": 2},
                "marker": {"color": style["color"], "symbol": style["symbol"], "size": 8},
                "hovertemplate": "score %{x:.3f}, positives %{y:.3f}, %{customdata:,d} rows"
                f"<extra>{html.escape(kind)}</extra>",
            }
        )
    x_axis = share_axis("mean score of the bin") | {"range": [-0.02, 1.02]}
    return figure(data, x_axis, share_axis("share of positives"))


def score_counts(bins: dict[str, list[CalibrationBin]]) -> Figure:
    """Test rows in each bin of the calibration plot."""
    data = [
        {
            "type": "bar",
            "name": html.escape(kind),
            "x": [(row.low + row.high) / 2 for row in rows],
            "y": [row.count for row in rows],
            "customdata": [[row.low, row.high] for row in rows],
            "marker": {"color": model_style(kind, list(bins))["color"]},
            "hovertemplate": "score %{customdata[0]:.1f} to %{customdata[1]:.1f}: %{y:,d} rows"
            f"<extra>{html.escape(kind)}</extra>",
        }
        for kind, rows in bins.items()
    ]
    x_axis = axis("score, bin") | {"range": [-0.02, 1.02], "dtick": 0.2}
    return figure(data, x_axis, axis("test rows", from_zero=True))


def cold_slices(slices: list[Slice], kinds: list[str]) -> Figure:
    """Mean AUC over seeds in each slice, with a bar from the lowest to the highest seed."""
    data: list[Figure] = []
    for kind in kinds:
        style = model_style(kind, kinds)
        shown = [part for part in slices if part.aucs[kind]]
        means = [sum(part.aucs[kind]) / len(part.aucs[kind]) for part in shown]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": html.escape(kind),
                "offsetgroup": html.escape(kind),
                "x": [part.name for part in shown],
                "y": means,
                "customdata": [part.rows for part in shown],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [
                        max(part.aucs[kind]) - mean for part, mean in zip(shown, means, strict=True)
                    ],
                    "arrayminus": [
                        mean - min(part.aucs[kind]) for part, mean in zip(shown, means, strict=True)
                    ],
                    "color": style["color"],
                },
                "marker": {"color": style["color"], "symbol": style["symbol"], "size": 9},
                "hovertemplate": "%{x} impressions: AUC %{y:.4f}, %{customdata:,d} rows"
                f"<extra>{html.escape(kind)}</extra>",
            }
        )
    x_axis = axis("training impressions of the track") | {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": [part.name for part in slices],
        "range": [-0.5, len(slices) - 0.5],
    }
    chance = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": 0.5,
        "y1": 0.5,
        "line": {"color": GREY, "width": 1, "dash": "dot"},
    }
    aucs = [value for part in slices for kind in kinds for value in part.aucs[kind]]
    # Chance is always in view; the rest of the range is the data's.
    y_axis = axis("AUC") | {"range": [min([0.48, *aucs]) - 0.02, max([0.55, *aucs]) + 0.02]}
    return figure(data, x_axis, y_axis, scattermode="group", scattergap=0.6, shapes=[chance])


def listening(log: Listening) -> Figure:
    """Events per period, stacked by action."""
    data = [
        {
            "type": "bar",
            "name": html.escape(action),
            "x": list(counts),
            "y": list(counts.values()),
            "marker": {"color": ACTION_COLOURS.get(action, OCHRE), "line": {"width": 0}},
            "hovertemplate": f"%{{x}}: %{{y:,d}}<extra>{html.escape(action)}</extra>",
        }
        for action, counts in log.events.items()
    ]
    return figure(
        data,
        axis(f"{log.period}, UTC") | {"type": "date"},
        axis(f"events per {log.period}", from_zero=True),
        barmode="stack",
        bargap=0.1,
    )


def _level_line(
    name: str, levels: list[dict[str, Any]], measure: str, place: int, dash: str | None
) -> Figure:
    line = line_style(FAMILY_COLOURS, place)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": html.escape(name),
        "x": [row["level"] for row in levels],
        "y": [row[measure] for row in levels],
        "line": line | {"dash": dash or line["dash"]},
        "marker": {"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 8},
        "hovertemplate": f"level %{{x}}: %{{y:.4f}}<extra>{html.escape(name)}</extra>",
    }
