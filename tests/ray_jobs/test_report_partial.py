"""The report of a workspace that lacks pieces, or whose pieces are damaged."""

import shutil

import pyarrow as pa
import pytest

from feature_repo.errors import InputError
from ray_jobs.contract import SourceTables, write_contract_tables
from ray_jobs.generation_table import IDS_FILE
from ray_jobs.report import report
from ray_jobs.train import TrainOptions
from tests.event_logs import event, write_events
from tests.generations import write_generation
from tests.ray_jobs.html_page import Page
from tests.ray_jobs.reported import GENERATION, released, write_model

pytest_plugins = ["tests.ray_jobs.reported"]


def test_a_workspace_without_tables_is_refused(workspace):
    with pytest.raises(InputError, match=r"no tables; run `crescendo ingest "):
        report(workspace)
    assert not workspace.root.exists()


def test_tables_alone_make_a_page_that_names_the_commands(workspace):
    write_events(workspace, [event(n, n % 3, n, 60 * n) for n in range(48)])
    answer = report(workspace)
    page = Page(answer["path"])
    assert "48" in page.text
    for command in ("quantize", "train", "study", "release"):
        assert f"crescendo --workspace {workspace.root} {command}" in page.text
    assert len(answer["left_out"]) == 5
    assert list(page.figures()) == ["events"]


def test_a_catalogue_nobody_listened_to_yet(workspace):
    catalogue = pa.table({"track_id": [1, 2], "title": ["a", "b"]})
    empty = pa.table(
        {
            "user_id": pa.array([], pa.int64()),
            "track_id": pa.array([], pa.int64()),
            "event_timestamp": pa.array([], pa.timestamp("us", "UTC")),
            "action": pa.array([], pa.string()),
        }
    )
    tables = SourceTables(tracks=catalogue, events=empty)
    write_contract_tables(workspace, tables, source="new", max_rejected_share=0)
    answer = report(workspace)
    assert "listening event" in answer["left_out"]
    assert not Page(answer["path"]).scripts  # no plot, no plotly.js


def test_a_generation_without_quality_still_shows_its_codes(workspace):
    write_events(workspace, [event(1, 1, 1, 0)])
    write_generation(workspace, GENERATION, 60)
    answer = report(workspace)
    assert "quality measures of this generation" in answer["left_out"]
    figures = Page(answer["path"]).figures()
    assert {"usage-0", "usage-1", "usage-2"} < set(figures)
    assert "relative-mse" not in figures
    assert sum(figures["usage-1"]["data"][0]["y"]) == 59  # one track lacks audio


def test_models_without_a_study_are_all_shown(workspace):
    write_events(workspace, [event(1, 1, 1, 0)])
    models = [("din", 0), ("mcca", 0), ("mcca", 1)]
    runs = [write_model(workspace, TrainOptions(model=model, seed=seed)) for model, seed in models]
    answer = report(workspace)
    page = Page(answer["path"])
    assert any("study" in piece for piece in answer["left_out"])
    for run in runs:
        assert page.row(f"{'din' if run is runs[0] else 'mcca'}|{run['model_id']}")[0] == (
            f"{run['auc']:.4f}"
        )
    figures = page.figures()
    assert len(figures["train-loss"]["data"]) == 3
    assert len(figures["calibration"]["data"]) == 3  # the diagonal, and the newest of each kind


def test_a_live_model_outside_the_study_is_reported_apart(full):
    workspace, _ = full
    other = write_model(workspace, TrainOptions(model="mcca", seed=9))
    released(workspace, other["model_id"])
    text = Page(report(workspace)["path"]).text
    assert f"The live model, mcca {other['model_id']}, is not one of them" in text
    assert f"AUC {other['auc']:.4f}" in text


def test_damaged_pieces_are_named_and_the_rest_is_shown(full):
    workspace, result = full
    gone, changed = result["models"]["din"]["model_ids"][:2]
    shutil.rmtree(workspace.models / gone)
    with (workspace.models / changed / "metrics.jsonl").open("a") as stream:
        stream.write("\n")
    (workspace.generations / GENERATION / IDS_FILE).write_bytes(b"other")
    (workspace.reports / "ceiling.json").write_text("{")
    page = Page(report(workspace)["path"])
    for problem in (
        f"no model {gone}",
        f"model {changed}: metrics.jsonl was changed; run `crescendo train`",
        f"generation {GENERATION}: {IDS_FILE} was changed; run `crescendo quantize`",
        "ceiling.json is not JSON",
    ):
        assert problem in page.text
    assert len(page.figures()["train-loss"]["data"]) == 4
    assert page.row("mcca")
