"""The quality page, the printed table and the command."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest

from models.psrq import PsrqOptions, fit
from models.sid_quality import quality as measure
from ray_jobs.report.measures import churn_rows
from ray_jobs.report.quality_findings import findings, print_quality
from tests.models.blobs import blobs
from tests.ray_jobs.html_page import Page, in_a_browser
from tests.ray_jobs.measured import stored

pytest_plugins = ["tests.ray_jobs.measured"]

BIN = Path(sys.executable).parent / "crescendo"


def test_the_page_shows_the_numbers_and_where_auto_chose(made):
    _, _, answer, families = made
    page = Page(answer["path"])
    assert [text for text in ("1. text", "2. audio", "3. joint") if text in page.text]
    for family in families:
        for sentence in findings(family):
            assert sentence in page.text
    text = answer["families"]["text"]
    names = ("generation", "rq", "literal")
    assert page.row("Tracks sharing an ID") == [f"{text[n]['items_sharing']:.1%}" for n in names]
    assert page.row("Relative MSE") == [f"{text[n]['relative_mse']:.4f}" for n in names]
    assert f"breaks even at {text['break_even']:.3g}" in page.text
    assert "sqrt(g / f)" in page.text
    assert "4 tags label 360 of 400 tracks" in page.text
    assert re.search(
        r"neighbour recall from 400 sampled tracks, each searched among 400", page.text
    )

    figures = page.figures()
    assert len(figures) == 3 * 3 + 3  # three plots and the use of codes, for each family
    for figure in figures.values():
        go.Figure(figure)  # raises on a property that plotly does not know
        for axis in ("xaxis", "yaxis"):
            assert figure["layout"][axis]["title"]["text"]
    buys = figures["buys-text"]
    weights = buys["data"][0]["x"]
    band = buys["layout"]["shapes"][0]
    assert weights[round((band["x0"] + band["x1"]) / 2)].endswith("<br>auto")
    assert weights[0] == "0<br>RQ"
    assert weights[-1].endswith("<br>literal")
    fits = stored(answer)["text"]["comparison"]["fits"]
    costs = {trace["name"]: trace["y"] for trace in figures["costs-text"]["data"]}
    assert costs["tracks sharing an ID"] == [
        one["measures"]["full"]["items_sharing"] for one in fits
    ]
    assert costs["error beyond RQ's"][0] == 0


def test_the_page_requests_nothing(made):
    page = Page(made[2]["path"])
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "content" in a)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href"):
                assert value.startswith("#") or value == "data:,", value
    assert len(page.scripts) == 2


def test_print_quality_is_one_table_a_family_and_the_findings(made, capsys):
    families = made[3]
    print_quality(families)
    printed = capsys.readouterr()
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.out.splitlines()]
    text = made[2]["families"]["text"]
    names = ("generation", "rq", "literal")
    assert ["these IDs", "RQ", "literal"] in lines
    assert ["Tracks sharing an ID", *(f"{text[n]['items_sharing']:.1%}" for n in names)] in lines
    for sentence in findings(families[0]):
        assert sentence in printed.out.splitlines()
    assert printed.err == ""


def test_findings_name_what_should_be_looked_at(made):
    """The faults of a prefix that decides everything; the automatic weight has none of them."""
    family = made[3][0]
    assert len(findings(family)) == 2  # what was kept and what was paid
    x = blobs(300, 4, 40)
    book, codes, _ = fit(x, PsrqOptions(levels=3, codes=8, prefix_weight=4.0))
    words = " ".join(findings(replace(family, measures=measure(x, codes, book))))
    assert "Level 2 repeats level 1" in words
    assert "Level 3 repeats level 1" in words
    assert re.search(r"give only \d% of the information", words)
    assert "100% of tracks share their ID with another" in words
    codes[:, 1] = codes[:, 1] % 3
    words = " ".join(findings(replace(family, measures=measure(x, codes, book))))
    assert "Level 2 leaves 62% of its 8 codes unused" in words
    assert "An hourglass" in words


def test_an_aligned_refit_shows_its_churn():
    churn = {"tracks": 1234, "raw": [0.9, 0.95, 1.0], "aligned": [0.1, 0.25, 0.5]}
    rows = churn_rows({"to": "gen-old", "families": {"text": churn}}, ["text", "joint"])
    assert [cells for *_, cells in rows] == [
        ["1,234", "n/a"],
        ["0.900 / 0.950 / 1.000", "n/a"],
        ["0.100 / 0.250 / 0.500", "n/a"],
    ]
    assert "gen-old" in rows[0][1]
    assert churn_rows(None, ["text"]) == []


@pytest.mark.slow
def test_the_command_prints_a_table_and_ends_with_json(fresh):
    workspace, _ = fresh
    asked = ("--workspace", str(workspace.root), "quality", "--curve", "0.3", "--rows", "80")
    ended = subprocess.run([BIN, *asked], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    last = json.loads(lines[-1])
    assert last["families"]["joint"]["rows"] == 80
    assert Path(last["path"]).is_file()
    assert any("these IDs" in line for line in lines[:-1])
    wrong = subprocess.run([BIN, "quality", "--curve", "a"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "curve must be numbers" in wrong.stderr


@pytest.mark.browser
def test_a_browser_draws_every_plot(made, tmp_path):
    path = made[2]["path"]
    dom, log = in_a_browser(path, tmp_path)
    assert dom.count('class="chart js-plotly-plot"') == len(Page(path).figures())
    assert "Content Security Policy" not in log
