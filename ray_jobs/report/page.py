"""A page as one HTML text: style, content, plotly.js and the plots; nothing from outside.

A content security policy forbids the browser every request, and every script but the two that are
written here. Plots have a fixed height, so that nothing moves when they are drawn.
"""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from feature_repo.durable_files import replacing
from ray_jobs.report.markup import Section, element, safe

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --paper: #ffffff; --panel: #f6f8fa; --warn: #9a3c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #a3adb8; --line: #3a424b;
  --paper: #14181d; --panel: #1c2229; --warn: #ff9a5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 0; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 0; }
p, ul { margin: .6rem 0; max-width: 75ch; }
ul { padding-left: 1.2rem; }
summary { cursor: pointer; padding: .4rem 0; }
nav { display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
a { color: inherit; display: inline-block; padding: .4rem 0; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10rem), 1fr));
  gap: .6rem 1.2rem; margin: .8rem 0; padding: .8rem; background: var(--panel);
  border-radius: 6px; }
dt, small, figcaption { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
small { display: block; font-weight: 400; }
.missing, .note { padding: .6rem .8rem; background: var(--panel); border-left: 4px solid
  var(--line); }
.note { border-color: var(--warn); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: normal; white-space: nowrap; }
tbody th { white-space: normal; min-width: min(14rem, 38vw); max-width: 16rem; }
thead th { color: var(--soft); font-size: .85rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr));
  gap: 1.5rem; margin: 1rem 0; }
.wide { grid-template-columns: minmax(0, 1fr); }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column;
  justify-content: space-between; }
figcaption b { color: var(--ink); }
.chart { height: 320px; }
.xtick text, .ytick text, .xtitle, .ytitle, .legendtext { fill: var(--ink) !important; }
"""

DRAW = """
const figures = FIGURES;
const config = { displayModeBar: false, responsive: true };
for (const [id, figure] of Object.entries(figures)) {
  Plotly.newPlot(id, figure.data, figure.layout, config);
}
"""


def page(head: Section, sections: Sequence[Section]) -> str:
    """The whole text of the page."""
    figures = {name: figure for part in (head, *sections) for name, figure in part.figures.items()}
    scripts = [get_plotlyjs(), DRAW.replace("FIGURES", _script_json(figures))] if figures else []
    links = "".join(
        f'<a href="#section-{place}">{place}. {safe(section.title)}</a>'
        for place, section in enumerate(sections, start=1)
    )
    content = "".join(
        f'<section><h2 id="section-{place}">{place}. {safe(section.title)}</h2>'
        f"{''.join(section.parts)}</section>\n"
        for place, section in enumerate(sections, start=1)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,"><title>{safe(head.title)}</title>\n'
        f"<style>{STYLE}</style></head><body>\n"
        f"<header>{element('h1', head.title)}{''.join(head.parts)}</header>\n"
        f'<nav aria-label="Sections">{links}</nav>\n<main>\n{content}</main>\n'
        "<noscript><p>The plots need JavaScript; the tables do not.</p></noscript>\n"
        f"{''.join(f'<script>{script}</script>' for script in scripts)}\n</body></html>\n"
    )


def write_page(path: Path, text: str) -> None:
    """Writes under a temporary name, syncs it and renames it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(text.encode())


def _policy(scripts: list[str]) -> str:
    """No requests at all; the scripts by their hashes; styles, as plotly sets them on elements."""
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(_finite(value), allow_nan=False).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """NaN and infinity as null, which plotly leaves out."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
