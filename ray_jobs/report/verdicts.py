"""What a study found, in words and as a table on standard output.

`print_study(study, ceiling)` prints per model the mean over seeds and the spread of each metric,
then for each compared model whether it is better or worse than the baseline. The page uses the
same words.
"""

import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ray_jobs.bootstrap import COVERAGE
from ray_jobs.slices import COLD_BELOW
from ray_jobs.study_answers import METRICS

RULE = (
    f"Rule: runs of one seed are paired. A model is called better or worse than the baseline where "
    f"the {COVERAGE:.0%} interval of the mean of its differences leaves 0 out: a bootstrap over "
    "seeds and test users, both models on the same draw. Where a draw cannot be measured there is "
    "no interval, and the mean has to be larger than the spreads of both models; spread = highest "
    "minus lowest seed."
)
COLD = f"Cold rows: the track has fewer than {COLD_BELOW} training impressions."
TITLES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "cold_auc": "cold AUC",
    "logloss": "logloss",
    "cold_gauc": "cold GAUC",
}
CEILING = "true taste"
NOTHING = "n/a"
NO_DIFFERENCE = "no difference shown"
NARROWEST = 80


def number(value: float | None, digits: int = 4) -> str:
    """With a fixed number of digits; `n/a` where a measure is not defined."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def metric_cells(summary: dict[str, Any], part: str) -> list[str]:
    """`mean` or `spread` of each metric; no spread where a single run has the metric."""
    cells = []
    for metric in METRICS:
        found = summary.get(metric)
        if found is None or (part == "spread" and len(found["per_seed"]) < 2):
            cells.append(NOTHING)
        else:
            cells.append(number(found[part]))
    return cells


def ceiling_cells(ceiling: dict[str, float]) -> list[str]:
    """The true taste's AUCs; the other metrics are not measured for it."""
    return [number(ceiling[metric]) if metric in ceiling else "" for metric in METRICS]


def verdicts(study: dict[str, Any]) -> list[str]:
    """One line a compared model."""
    return [_verdict(study, model) for model in study["differences"]]


def _verdict(study: dict[str, Any], model: str) -> str:
    found = [
        f"{rows}: {_judgement(study, model, metric)}"
        for rows, metric in (("all rows", "auc"), ("cold rows", "cold_auc"))
    ]
    return f"{model} against {study['baseline']}, {'; '.join(found)}."


def _judgement(study: dict[str, Any], model: str, metric: str) -> str:
    difference = study["differences"][model].get(metric)
    if difference is None:
        return "not measured, as not every run has test rows of both labels there"
    change = f"AUC {difference['mean']:+.4f}"
    if len(difference["per_seed"]) < 2:
        return f"{change}, one seed: undecided, as there is no spread to compare with"
    outcome = f"{model} is {'better' if difference['mean'] > 0 else 'worse'}"
    if difference.get("interval") is not None:
        low, high = difference["interval"]
        change += f" ({COVERAGE:.0%}: {low:+.4f} to {high:+.4f})"
        return f"{change}: {NO_DIFFERENCE if low <= 0 <= high else outcome}"
    spread = max(study["models"][name][metric]["spread"] for name in (model, study["baseline"]))
    if not difference["beyond_spread"]:
        return f"{change}, within the spread of {spread:.4f}: {NO_DIFFERENCE}"
    return f"{change}, beyond the spread of {spread:.4f}: {outcome}"


def print_study(study: dict[str, Any], ceiling: dict[str, float] | None) -> None:
    """Prints a study's result; `ceiling` ("auc", "cold_auc") is how well the true taste ranks."""
    console = Console(highlight=False, markup=False)
    # Away from a terminal the width is a guess, and a cut name would be worse than a long line.
    console.width = max(NARROWEST, console.width)
    table = Table(box=SIMPLE_HEAD, title="Study on the test part", title_justify="left")
    table.add_column("model", overflow="fold")
    for metric in METRICS:
        table.add_column(TITLES[metric], justify="right", no_wrap=True)
    table.add_column("rows/s", justify="right", no_wrap=True)
    for model, summary in study["models"].items():
        speed = number(summary["rows_per_second"], 0)
        table.add_row(Text(model), *metric_cells(summary, "mean"), speed)
        table.add_row(Text("  spread", style="dim"), *metric_cells(summary, "spread"), "")
    if ceiling is not None:
        table.add_row(Text(CEILING), *ceiling_cells(ceiling), "")
    console.print(table)
    for line in (*verdicts(study), RULE, COLD):
        console.print(line, soft_wrap=True)
