"""The study as it is printed: means, spreads, and who won by what rule."""

from typing import Any

import numpy as np
import pytest

from ray_jobs.report import print_study


def a_study(auc: list[float], cold: list[float] | None, model: str = "mcca") -> dict[str, Any]:
    """A study of `model` against din, whose AUCs are 0.60, 0.61, ... and cold 0.55, 0.56, ..."""

    def metric(values: list[float]) -> dict[str, Any]:
        return {"mean": np.mean(values), "spread": np.ptp(values), "per_seed": values}

    def difference(ours: list[float], theirs: list[float]) -> dict[str, Any]:
        mean = float(np.mean(np.subtract(ours, theirs)))
        beyond = bool(abs(mean) > max(np.ptp(ours), np.ptp(theirs)))
        return {"mean": mean, "per_seed": ours, "beyond_spread": beyond}

    base = {"auc": [0.60 + n / 100 for n in range(len(auc))]}
    ours = {"auc": auc}
    if cold is not None:
        base["cold_auc"] = [0.55 + n / 100 for n in range(len(auc))]
        ours["cold_auc"] = cold
    runs = {"din": base, model: ours}
    return {
        "baseline": "din",
        "models": {
            name: {"model_ids": ["m"] * len(auc), "rows_per_second": 9876.5}
            | {key: metric(values) for key, values in found.items()}
            for name, found in runs.items()
        },
        "differences": {model: {key: difference(ours[key], base[key]) for key in ours}},
    }


@pytest.mark.parametrize(
    ("auc", "cold", "verdict"),
    [
        (
            [0.70, 0.71],
            [0.50, 0.51],
            "mcca against din, all rows: AUC +0.1000, beyond the spread of 0.0100: mcca is better; "
            "cold rows: AUC -0.0500, beyond the spread of 0.0100: mcca is worse.",
        ),
        (
            [0.601, 0.611],
            [0.50, 0.60],
            "mcca against din, all rows: AUC +0.0010, within the spread of 0.0100: no difference "
            "shown; cold rows: AUC -0.0050, within the spread of 0.1000: no difference shown.",
        ),
        (
            [0.55],
            None,
            "mcca against din, all rows: AUC -0.0500, one seed: undecided, as there is no spread "
            "to compare with; cold rows: not measured, as not every run has test rows of both "
            "labels there.",
        ),
    ],
)
def test_print_study_says_who_won_and_by_what_rule(capsys, auc, cold, verdict):
    print_study(a_study(auc, cold), ceiling=None)
    printed = capsys.readouterr()
    assert verdict in printed.out.splitlines()
    assert "Rule: runs of one seed are paired." in printed.out
    assert "fewer than 30 training impressions" in printed.out
    assert printed.err == ""


def test_print_study_prints_means_spreads_and_the_ceiling_last(capsys):
    ceiling = {"auc": 0.8123, "cold_auc": float("nan")}
    print_study(a_study([0.70, 0.72], [0.5, 0.5]), ceiling)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["mcca", "0.7100", "n/a", "0.5000", "n/a", "9,876"] in lines
    assert ["spread", "0.0200", "n/a", "0.0000", "n/a"] in lines
    assert ["true", "taste", "0.8123", "n/a"] in lines
    assert lines.index(["true", "taste", "0.8123", "n/a"]) > lines.index(
        ["spread", "0.0200", "n/a", "0.0000", "n/a"]
    )


def test_print_study_reads_no_markup_in_names(capsys):
    print_study(a_study([0.7, 0.7], None, model="[red]m[/red]"), ceiling=None)
    out = capsys.readouterr().out
    assert "[red]m[/red] against din" in out
    assert any(line.split()[:1] == ["[red]m[/red]"] for line in out.splitlines())
