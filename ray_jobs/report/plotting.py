"""How all plots of the report look: colours, axes, layout. No titles: those are HTML.

Colours are told apart by colour-blind readers and stand out on white and on black alike; dashes
and markers say the same again.
"""

from typing import Any

Figure = dict[str, Any]
BLUE, RED, GREEN, PINK, OCHRE, VIOLET = (
    "#1a80c2",
    "#d55e00",
    "#008f68",
    "#c2609a",
    "#a67c00",
    "#8a63d2",
)
GREY = "#7f7f7f"
GRID = "rgba(127,127,127,0.25)"
CLEAR = "rgba(0,0,0,0)"
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "cross", "x")
MODEL_COLOURS = {"din": RED, "mcca": BLUE}
MODEL_SYMBOLS = {"din": "diamond", "mcca": "circle"}
MODEL_DASHES = {"din": "dash", "mcca": "solid"}
FAMILY_COLOURS = (GREEN, PINK, OCHRE, VIOLET, BLUE, RED)
LEVEL_COLOURS = (BLUE, RED, GREEN, PINK, OCHRE, VIOLET)
ACTION_COLOURS = {"play": GREY, "complete": BLUE, "skip": RED, "favourite": GREEN}
MOST_TICKS = 12


def line_style(colours: tuple[str, ...], place: int) -> Figure:
    colour, dash = colours[place % len(colours)], DASHES[place % len(DASHES)]
    return {"color": colour, "dash": dash, "width": 2}


def model_style(kind: str, kinds: list[str]) -> dict[str, str]:
    """A model's colour, the same on every plot; other kinds of model take what is left."""
    place = kinds.index(kind)
    others = (GREEN, PINK, OCHRE, VIOLET)
    return {
        "color": MODEL_COLOURS.get(kind, others[place % len(others)]),
        "symbol": MODEL_SYMBOLS.get(kind, SYMBOLS[(place + 2) % len(SYMBOLS)]),
        "dash": MODEL_DASHES.get(kind, DASHES[place % len(DASHES)]),
    }


def axis(title: str, *, from_zero: bool = False) -> Figure:
    settings: Figure = {
        "title": {"text": title, "standoff": 8},
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": GRID,
        "automargin": True,
        # No zoom by dragging: on a phone it would take the finger that scrolls the page.
        "fixedrange": True,
    }
    return settings | ({"rangemode": "tozero"} if from_zero else {})


def figure(data: list[Figure], x_axis: Figure, y_axis: Figure, **layout: Any) -> Figure:
    """Data and layout; `layout` is what this plot adds to the common one."""
    return {
        "data": data,
        "layout": {
            "xaxis": x_axis,
            "yaxis": y_axis,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "font": {"family": "system-ui, sans-serif", "size": 13},
            "showlegend": True,
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": 1.02,
                "yanchor": "bottom",
                "traceorder": "normal",
            },
            "dragmode": False,
            "hovermode": "closest",
            **layout,
        },
    }
