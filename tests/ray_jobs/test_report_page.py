"""The report as a page: its sections and plots, nothing from outside, whole or not written."""

import json
import os
import re
from pathlib import Path

import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.report import report
from ray_jobs.study import StudyOptions, study
from tests.ray_jobs.html_page import Page, in_a_browser
from tests.ray_jobs.reported import GENERATION, ingested, quantized, released, write_models

pytest_plugins = ["tests.ray_jobs.reported"]

HOSTILE = "<img src=x onerror=alert(1)>\"'</script><b>"
SECTIONS = ["1. Semantic IDs", "2. Training", "3. Test", "4. Listening log"]


def test_a_full_workspace_has_every_section_and_plot(full):
    workspace, _ = full
    answer = report(workspace)
    assert answer["path"] == str(workspace.reports / "report.html")
    assert answer["bytes"] == Path(answer["path"]).stat().st_size
    assert answer["left_out"] == []
    page = Page(answer["path"])
    for title in SECTIONS:
        assert title in page.text
    for fact in ("release-bbbbbbbbbbbb", GENERATION, "2026-02-03 04:05 UTC", "Sourceshop"):
        assert fact in page.text
    charts = [attrs["id"] for _, attrs in page.elements if attrs.get("class") == "chart"]
    figures = page.figures()
    assert charts == list(figures)
    assert {"usage-0", "usage-1", "retention-nmi", "validation-auc", "events"} < set(charts)
    for figure in figures.values():
        go.Figure(figure)  # raises on a property that plotly does not know
        assert all(trace["x"] and trace["y"] for trace in figure["data"])
        for axis in ("xaxis", "yaxis"):
            assert figure["layout"][axis]["title"]["text"]


def test_nothing_is_requested_and_no_other_script_may_run(full):
    page = Page(report(full[0])["path"])
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "content" in a)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split(";")[1]
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href", "srcset", "action", "data"):
                assert value.startswith("#") or value == "data:,", value
    assert not re.search(r"url\(|@import|https?:", page.style)
    assert len(page.scripts) == 2
    assert "http" not in page.scripts[1]
    assert not re.search(r"\bimport\s*\(|fetch\(|XMLHttp", page.scripts[1])


def test_text_from_data_stays_text(workspace, monkeypatch):
    ingested(workspace, source=HOSTILE)
    quantized(workspace, families=("text", HOSTILE))
    monkeypatch.setattr("ray_jobs.train_options.MODELS", ("din", "mcca", HOSTILE))
    monkeypatch.setattr("ray_jobs.study.train_all", write_models)
    study(workspace, StudyOptions(models=("din", HOSTILE), seeds=1))
    table = pq.read_table(workspace.events)
    actions = pa.array([HOSTILE] * len(table))
    place = table.column_names.index("action")
    pq.write_table(
        table.set_column(place, "action", actions), workspace.events / "part-00000.parquet"
    )
    released(workspace, HOSTILE)

    page = Page(report(workspace)["path"])  # an element that is not closed fails in there
    assert not {"img"} & {tag for tag, _ in page.elements}
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert len(page.scripts) == 2
    assert page.text.count(HOSTILE) >= 5
    assert "<" not in page.scripts[1].partition("const figures = ")[2].partition(";\nconst")[0]
    names = json.dumps(page.figures())
    assert "<img" not in names
    assert "&lt;img" in names


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_earlier_page(full, monkeypatch, failing):
    workspace, _ = full
    before = Path(report(workspace)["path"]).read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        report(workspace)
    assert (workspace.reports / "report.html").read_bytes() == before
    assert not list(workspace.reports.glob(".*"))


@pytest.mark.browser
def test_a_browser_draws_every_plot(full, tmp_path):
    path = report(full[0])["path"]
    dom, log = in_a_browser(path, tmp_path)
    assert dom.count('class="chart js-plotly-plot"') == len(Page(path).figures())
    assert "Content Security Policy" not in log
