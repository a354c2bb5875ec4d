"""Verdicts and page of a study, from answers written by hand."""

import pytest

from feature_repo.artifacts import write_json
from feature_repo.workspace import Workspace
from ray_jobs.report.study_page import write_study_page
from ray_jobs.report.verdicts import verdicts
from tests.ray_jobs.html_page import Page

HOSTILE = '<img src=x onerror=alert(1)>"'


def measured(values):
    return {
        "mean": sum(values) / len(values),
        "spread": max(values) - min(values),
        "per_seed": values,
    }


def answer(interval, seeds=2, rival="rq"):
    """`rival` is 0.0100 above psrq in AUC; neither has a cold AUC."""
    summary = {
        "model": "din_sid",
        "generation": "gen-1",
        "model_ids": ["m"] * seeds,
        "validation_auc": 0.6123,
        "best_epochs": [3] * seeds,
        "rows_per_second": 12345.6,
        "seconds": 7.89,
        "parameters": 54321,
    }
    difference = {
        "mean": 0.01,
        "per_seed": [0.01] * seeds,
        "interval": interval,
        "beyond_spread": None if seeds == 1 else False,
    }
    return {
        "question": "quantizers",
        "asks": "Whose IDs?",
        "made_at": "2026-02-03T04:05:06.7+00:00",
        "seeds": seeds,
        "baseline": "psrq",
        "rows": {"test_rows": 4321, "cold_rows": 0, "test_users": 99, "draws": 1000},
        "fixed": {
            "train": {"epochs": 12, "top_k": None, "impressions": {"label_rule": "complete"}},
            "notes": ["All of one seed."],
        },
        "models": {
            "psrq": summary | {"auc": measured([0.60, 0.62][:seeds])},
            rival: summary | {"auc": measured([0.61, 0.63][:seeds])},
        },
        "differences": {rival: {"auc": difference}},
    }


NOT_COLD = "cold rows: not measured, as not every run has test rows of both labels there."


@pytest.mark.parametrize(
    ("interval", "seeds", "verdict"),
    [
        ([0.004, 0.015], 2, "AUC +0.0100 (95%: +0.0040 to +0.0150): rq is better"),
        ([-0.004, 0.025], 2, "AUC +0.0100 (95%: -0.0040 to +0.0250): no difference shown"),
        (None, 2, "AUC +0.0100, within the spread of 0.0200: no difference shown"),
        ([0.004, 0.015], 1, "AUC +0.0100, one seed: undecided, as there is no spread to compare"),
    ],
)
def test_a_verdict_is_the_intervals(interval, seeds, verdict):
    (line,) = verdicts(answer(interval, seeds))
    assert line.startswith(f"rq against psrq, all rows: {verdict}")
    assert line.endswith(NOT_COLD)


def test_a_model_below_the_baseline_is_worse():
    found = answer([-0.03, -0.001])
    found["differences"]["rq"]["auc"]["mean"] = -0.02
    (line,) = verdicts(found)
    assert "AUC -0.0200 (95%: -0.0300 to -0.0010): rq is worse" in line


def test_the_page_has_a_line_a_variant_and_leaves_out_what_is_not_measured(tmp_path):
    workspace = Workspace(tmp_path)
    write_json(workspace.reports / "study-quantizers.json", answer([0.004, 0.015]))
    write_study_page(workspace)
    page = Page(str(workspace.reports / "study.html"))
    cells = page.row("rq")
    assert cells[:2] == ["0.6200|spread 0.0200", "+0.0100|+0.0040 to +0.0150"]
    assert cells[2:] == ["n/a"] * 4 + ["0.6123"]
    of_all, of_cold = (row[1:] for row in page.rows if row[0].startswith("rq"))
    assert (of_all, of_cold) == (cells, ["n/a"] * 4 + ["54,321", "12,346", "7.9"])
    assert page.row("psrq")[1] == "baseline"
    assert page.row("epochs") == ["12"]
    assert page.row("impressions label_rule") == ["complete"]
    assert not any(row[0] == "top_k" for row in page.rows)
    assert "By mean AUC: rq > psrq." in page.text
    assert "4,321 test rows of 99 users" in page.text
    assert "All of one seed." in page.text
    trace, cold = page.figures()["differences-quantizers"]["data"]
    assert trace["error_x"]["array"] == pytest.approx([0.005])
    assert cold["x"] == []


def test_names_stay_text_and_nothing_is_requested(tmp_path):
    workspace = Workspace(tmp_path)
    write_json(workspace.reports / "study-quantizers.json", answer([0.004, 0.015], rival=HOSTILE))
    write_study_page(workspace)
    page = Page(str(workspace.reports / "study.html"))
    assert not {"img"} & {tag for tag, _ in page.elements}
    assert page.text.count(HOSTILE) >= 3
    policy = next(
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "<" not in page.scripts[1].partition("const figures = ")[2].partition(";\nconst")[0]


def test_a_study_of_one_variant_has_a_table_and_no_plots(tmp_path):
    workspace = Workspace(tmp_path)
    alone = answer(None)
    del alone["models"]["rq"]
    write_json(workspace.reports / "study.json", alone | {"question": "models", "differences": {}})
    write_study_page(workspace)
    page = Page(str(workspace.reports / "study.html"))
    assert page.row("psrq")[0] == "0.6100|spread 0.0200"
    assert page.scripts == []
