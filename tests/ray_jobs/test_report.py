"""The report's numbers are the artifacts' own: IDs, training, test and listening log."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from feature_repo.artifacts import read_manifest, write_artifact
from ray_jobs.generation_table import IDS_FILE
from ray_jobs.report import report
from tests.event_logs import event, write_events
from tests.ray_jobs.html_page import Page
from tests.ray_jobs.reported import CODES, GENERATION, quantized, write_ceiling

pytest_plugins = ["tests.ray_jobs.reported"]


def test_a_ceiling_of_other_test_rows_is_not_shown(full):
    workspace, _ = full
    assert "true taste" in Path(report(workspace)["path"]).read_text()
    write_ceiling(workspace, "ts-2")
    assert "true taste" not in Path(report(workspace)["path"]).read_text()


def test_numbers_are_the_artifacts_own(full):
    workspace, result = full
    page = Page(report(workspace)["path"])
    generation = json.loads((workspace.generations / GENERATION / "manifest.json").read_text())
    measured = [generation["info"]["quality"][family] for family in ("text", "audio")]
    assert page.row("Collision rate") == [f"{m['full']['collision_rate']:.4f}" for m in measured]
    assert page.row("Relative MSE") == [
        " / ".join(f"{level['relative_mse']:.3f}" for level in m["levels"]) for m in measured
    ]
    weights = [
        json.loads((workspace.codebooks / f"codebook-{n}" / "manifest.json").read_text())["info"]
        for n in (0, 1)
    ]
    assert page.row("Prefix weight") == [f"{w['settings']['prefix_weight']:.4f}" for w in weights]

    summary = result["models"]["mcca"]
    cells = [f"{summary[m]['mean']:.4f}|spread {summary[m]['spread']:.4f}" for m in ("auc", "gauc")]
    assert page.row("mcca")[:2] == cells
    assert page.row("mcca")[-1] == "1,234"
    assert page.row("true taste") == ["0.9876", "", "0.9123", "", ""]

    slices = {}
    for kind in ("din", "mcca"):
        aucs = []
        for model_id in result["models"][kind]["model_ids"]:
            scored = pq.read_table(workspace.models / model_id / "test_scores.parquet").to_pandas()
            part = scored[scored["train_impressions"].between(10, 29)]
            aucs.append(roc_auc_score(part["label"], part["score"]))
        slices[kind] = f"{np.mean(aucs):.4f}|spread {np.ptp(aucs):.4f}"
    assert page.row("10-29")[0] == "80"
    assert page.row("10-29")[2:] == [slices["din"], slices["mcca"]]

    cold_users = [
        read_manifest(workspace.models / model_id, kind="model", made_by="train").info["metrics"][
            "slices"
        ]["cold_users"]
        for model_id in result["models"]["mcca"]["model_ids"]
    ]
    aucs = [part["auc"] for part in cold_users]
    assert page.row("cold users")[0] == "100"
    assert page.row("cold users")[4] == f"{np.mean(aucs):.4f}|spread {np.ptp(aucs):.4f}"

    log = pq.read_table(workspace.events).to_pandas()
    assert page.row("skip")[0] == f"{(log['action'] == 'skip').sum():,}"
    assert page.row("tracks") == ["duplicate_track_id", "1"]
    assert page.row("events") == ["unknown_track", "1"]

    figures = page.figures()
    usage = figures["usage-0"]["data"]
    ids = np.array(pq.read_table(workspace.generations / GENERATION / IDS_FILE)["text_sid"])
    for level in range(3):
        counts = np.bincount([sid[level] for sid in ids.tolist()], minlength=CODES)
        assert usage[level]["y"] == sorted(counts.tolist(), reverse=True)
    events = [trace for trace in figures["events"]["data"] if trace["name"] == "skip"]
    assert sum(events[0]["y"]) == (log["action"] == "skip").sum()
    # An epoch that a restart wrote twice is shown once.
    assert figures["train-loss"]["data"][0]["x"] == [1, 2, 3]


def test_ids_are_shown_with_spreads_samples_and_their_comparison(full):
    workspace, _ = full
    page = Page(report(workspace)["path"])
    folder = workspace.generations / GENERATION
    measured = json.loads((folder / "manifest.json").read_text())["info"]["quality"]
    found = [measured[family] for family in ("text", "audio")]
    assert page.row("Gini") == [
        " / ".join(f"{level['gini']:.3f}" for level in m["levels"]) for m in found
    ]
    assert page.row("Hourglass") == [
        " / ".join(f"{m['hourglass'][name]:+.3f}" for name in ("entropy", "gini", "spread"))
        for m in found
    ]
    tau = found[0]["distance_preservation"]
    shown = f"{tau['tau']:.3f} (s.e. {tau['standard_error']:.3f})|2,000 pairs"
    assert page.row("Distance preservation")[0] == shown
    recall = found[0]["neighbour_recall"]
    shown = f"{recall['recall']:.3f} (s.e. {recall['standard_error']:.3f})"
    assert page.row("Neighbour recall")[0] == f"{shown}|10 nearest of 120, 120 queries"
    assert page.row("AMI to the reference")[1] == "n/a / n/a / n/a"  # text alone has labels
    names = [row[0] for row in page.rows if row]
    assert not [name for name in names if name.startswith(("Co-listened", "Churn"))]
    assert f"crescendo quality --generation {GENERATION}" in page.text
    workspace.reports.joinpath(f"quality-{GENERATION}.html").touch()
    assert f"quality-{GENERATION}.html, beside this page" in Page(report(workspace)["path"]).text


def test_an_aligned_generation_shows_its_churn(workspace):
    write_events(workspace, [event(1, 1, 1, 0)])
    manifest = quantized(workspace)
    churn = {"tracks": 118, "raw": [0.5, 0.75, 1.0], "aligned": [0.1, 0.2, 0.3]}
    manifest.info["alignment"] = {"to": "gen-old", "families": {"text": churn, "audio": churn}}
    ids = pq.read_table(workspace.generations / GENERATION / IDS_FILE)
    with write_artifact(workspace.generations / GENERATION, manifest) as partial:
        pq.write_table(ids, partial / IDS_FILE)
    page = Page(report(workspace)["path"])
    assert page.row("Tracks in both generations|this one and gen-old") == ["118", "118"]
    assert page.row("Churn, as fitted") == ["0.500 / 0.750 / 1.000"] * 2
    assert page.row("Churn, aligned") == ["0.100 / 0.200 / 0.300"] * 2


@pytest.mark.parametrize(
    ("minutes", "period"),
    [(60, "day"), (60 * 24 * 6, "week"), (60 * 24 * 60, "month")],
)
def test_the_log_is_drawn_by_day_week_or_month(workspace, minutes, period):
    write_events(workspace, [event(n, 1, n, minutes * n) for n in range(30)])
    figure = Page(report(workspace)["path"]).figures()["events"]
    assert figure["layout"]["yaxis"]["title"]["text"] == f"events per {period}"
    assert sum(figure["data"][0]["y"]) == 30
