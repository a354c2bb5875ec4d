"""Plots of what the prefix of PSRQ buys and costs, over prefix weights.

The weights stand at equal distances, as they are crowded near 0: each has its name under it.
"""

from typing import Any

from ray_jobs.quality_comparison import Comparison, Fit, headline, same_weight
from ray_jobs.report.plotting import (
    BLUE,
    GREEN,
    GREY,
    OCHRE,
    PINK,
    RED,
    VIOLET,
    Figure,
    axis,
    figure,
)

Series = tuple[str, str, str, str, list[float | None]]
"""Name, colour, dash, symbol, and the value at each weight."""


def buys(comparison: Comparison) -> Figure:
    """Mean AMI of the levels after the first with the reference and with level 1."""
    found = [headline(one.measures) for one in comparison.fits]
    ceiling = [one.measures["levels"][0]["ami_reference"] for one in comparison.fits]
    return _over_weights(
        comparison,
        [
            ("level 1's own, with the reference", GREY, "dot", "line-ew", ceiling),
            (
                "with the reference",
                GREEN,
                "solid",
                "circle",
                [row["ami_reference"] for row in found],
            ),
            ("with level 1", PINK, "dash", "diamond", [row["ami_level_1"] for row in found]),
        ],
        "AMI, deeper levels",
    )


def costs(comparison: Comparison) -> Figure:
    """Tracks that share an ID, information left unused, and error beyond RQ's."""
    found = [headline(one.measures) for one in comparison.fits]
    return _over_weights(
        comparison,
        [
            ("tracks sharing an ID", RED, "solid", "circle", [r["items_sharing"] for r in found]),
            ("information not given", BLUE, "dash", "diamond", [r["unused"] for r in found]),
            ("error beyond RQ's", OCHRE, "dot", "square", excess_error(comparison)),
        ],
        "share",
    )


def excess_error(comparison: Comparison) -> list[float | None]:
    """Relative MSE of each fit over RQ's, less 1; None where RQ has none."""
    base = headline(comparison.rq.measures)["relative_mse"]
    found = [headline(one.measures)["relative_mse"] for one in comparison.fits]
    return [value / base - 1 if base and value is not None else None for value in found]


def trade(comparison: Comparison) -> Figure:
    """Retention against redundancy: one point a weight, the named ones marked."""
    weights = [_point(one.measures) for one in comparison.fits]
    data: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "showlegend": False,
            "x": [x for x, _ in weights],
            "y": [y for _, y in weights],
            "customdata": [f"{one.weight:.3g}" for one in comparison.fits],
            "line": {"color": GREY, "width": 1.5},
            "marker": {"color": GREY, "size": 6},
            "hovertemplate": "weight %{customdata}: %{x:.1%} of tracks share an ID, "
            "AMI %{y:.3f}<extra></extra>",
        }
    ]
    marked = [
        ("RQ", RED, "square", comparison.rq.measures),
        ("auto", GREEN, "diamond", comparison.chosen.measures),
        ("literal", VIOLET, "x", comparison.literal.measures),
        ("these IDs", BLUE, "star-open", comparison.measures),
    ]
    for name, colour, symbol, measures in marked:
        x, y = _point(measures)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [x],
                "y": [y],
                "marker": {
                    "color": colour,
                    "symbol": symbol,
                    "size": 16 if symbol == "star-open" else 10,
                    "line": {"width": 2, "color": colour},
                },
                "hovertemplate": f"{name}: %{{x:.1%}} of tracks share an ID, AMI %{{y:.3f}}"
                "<extra></extra>",
            }
        )
    x_axis = axis("tracks sharing an ID: redundancy") | {"range": [-0.04, 1.06]}
    return figure(data, x_axis, _from_zero("AMI with the reference", [y for _, y in weights]))


def _point(measures: dict[str, Any]) -> tuple[float, float | None]:
    found = headline(measures)
    return found["items_sharing"], found["ami_reference"]


def _over_weights(comparison: Comparison, series: list[Series], y_title: str) -> Figure:
    names = weight_names(comparison)
    data = [
        {
            "type": "scatter",
            "mode": "lines" if symbol == "line-ew" else "lines+markers",
            "name": name,
            "x": names,
            "y": values,
            "line": {"color": colour, "dash": dash, "width": 2},
            "marker": {"color": colour, "symbol": symbol, "size": 8},
            "hovertemplate": f"{name}: %{{y:.3f}}<extra></extra>",
        }
        for name, colour, dash, symbol, values in series
    ]
    place = comparison.fits.index(comparison.chosen)
    chosen = {
        "type": "rect",
        "yref": "paper",
        "x0": place - 0.3,
        "x1": place + 0.3,
        "y0": 0,
        "y1": 1,
        "fillcolor": GREY,
        "opacity": 0.18,
        "line": {"width": 0},
        "layer": "below",
    }
    x_axis = axis("prefix weight") | {
        "type": "category",
        "range": [-0.4, len(names) - 0.6],
        "tickangle": 0,
        "tickfont": {"size": 11},
    }
    values = [value for *_, found in series for value in found]
    return figure(data, x_axis, _from_zero(y_title, values), shapes=[chosen])


def _from_zero(title: str, values: list[float | None]) -> Figure:
    """An axis of shares, with room for the markers at both ends."""
    most = max([1.0, *(value for value in values if value is not None)])
    return axis(title) | {"range": [-0.04 * most, 1.06 * most]}


def weight_names(comparison: Comparison) -> list[str]:
    """Each weight, and under it what it is called."""
    return [
        "<br>".join([f"{one.weight:.2g}", *_called(comparison, one)]) for one in comparison.fits
    ]


def _called(comparison: Comparison, one: Fit) -> list[str]:
    if one is comparison.rq:
        return ["RQ"]
    if one is comparison.chosen:
        return ["auto"]
    if one is comparison.literal:
        return ["literal"]
    own = comparison.own_weight
    if own is not None and same_weight(own, one.weight):
        return ["this"]
    return ["even"] if same_weight(one.weight, comparison.auto.break_even) else []
