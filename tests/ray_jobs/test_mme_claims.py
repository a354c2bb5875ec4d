"""Verdicts on claims, from results written by hand, and the page and tables that show them."""

import numpy as np
import plotly.graph_objects as go
import pytest
from scipy import stats

from feature_repo.errors import InputError
from models.full_ranking import hits_and_gains
from models.mme_variants import (
    CONSISTENT,
    FULL,
    MSE,
    PAPER_SASREC,
    POPULAR,
    RANDOM_IDS,
    SASREC,
    only,
    variants_of,
)
from models.per_user import unpacked
from ray_jobs.mme_claims import GAIN, RANK, answer, claims_of, read_results
from ray_jobs.report.mme_page import write_mme_page
from ray_jobs.report.mme_tables import print_claims
from tests.ray_jobs.html_page import Page, in_a_browser
from tests.ray_jobs.mme_results import ALONE, HOSTILE, a_line, some_lines, write_lines


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return answer(read_results(write_lines(tmp_path_factory.mktemp("mme"), some_lines())))


def claim(answers, more, less, measure):
    return next(
        found
        for found in answers["planted"]["claims"]
        if (found["more"], found["less"], found["measure"]) == (more, less, measure)
    )


@pytest.mark.parametrize(
    ("more", "less", "measure", "verdict"),
    [
        (FULL, ALONE, RANK, "reproduced"),
        (FULL, ALONE, GAIN, "reproduced"),
        (FULL, SASREC, GAIN, "reversed"),
        (FULL, MSE, "codes_tau:collaborative", "reversed"),
        (FULL, RANDOM_IDS, "ids_tau:collaborative", "reproduced"),
        (CONSISTENT, FULL, "ids_tau:collaborative", "not shown"),
        (CONSISTENT, FULL, GAIN, "not shown"),
    ],
)
def test_verdicts_follow_the_intervals(answers, more, less, measure, verdict):
    found = claim(answers, more, less, measure)
    assert found["verdict"] == verdict
    low, high = found["interval"]
    assert low <= found["difference"] <= high
    assert found["difference"] == pytest.approx(np.mean(found["per_seed"]))


def test_differences_are_those_of_users_and_runs(answers):
    lines = {(line["variant"], line["seed"]): line for line in some_lines()}
    found = claim(answers, FULL, ALONE, GAIN)
    for seed, difference in enumerate(found["per_seed"]):
        gains = [
            hits_and_gains(unpacked(lines[name, seed]["ranks"]), 10)[1].mean()
            for name in (FULL, ALONE)
        ]
        assert difference == pytest.approx(gains[0] - gains[1])
    # A bootstrap over many users is near the normal interval of their paired differences.
    per_user = np.concatenate(
        [
            hits_and_gains(unpacked(lines[FULL, seed]["ranks"]), 10)[1]
            - hits_and_gains(unpacked(lines[ALONE, seed]["ranks"]), 10)[1]
            for seed in range(3)
        ]
    )
    assert found["difference"] == pytest.approx(per_user.mean())


def test_an_effective_rank_is_tested_over_seeds(tmp_path):
    lines = [
        a_line(name, seed, rank=5, effective_rank=rank)
        for seed, ranks in enumerate([(9.0, 7.0), (9.5, 6.0), (8.0, 7.5)])
        for name, rank in zip((FULL, ALONE), ranks, strict=True)
    ]
    found = claim(answer(read_results(write_lines(tmp_path, lines))), FULL, ALONE, RANK)
    expected = stats.ttest_rel([9.0, 9.6, 8.2], [7.0, 6.1, 7.7]).confidence_interval(0.95)
    assert found["interval"] == pytest.approx(tuple(expected))
    assert found["verdict"] == "not shown"
    one = claim(answer(read_results(write_lines(tmp_path, lines[:2]))), FULL, ALONE, RANK)
    assert (one["interval"], one["verdict"]) == (None, "not shown")


def test_a_claim_without_its_runs_is_left_out(tmp_path):
    lines = [line for line in some_lines() if line["variant"] != SASREC]
    found = answer(read_results(write_lines(tmp_path, lines)))["planted"]
    assert not any(SASREC in (one["more"], one["less"]) for one in found["claims"])
    lines = [line for line in lines if (line["variant"], line["seed"]) != (ALONE, 1)]
    found = answer(read_results(write_lines(tmp_path, lines)))
    assert claim(found, FULL, ALONE, RANK)["seeds"] == [0, 2]


@pytest.mark.parametrize("families", [("collaborative",), ("collaborative", "text", "audio")])
def test_every_variant_of_a_claim_is_one_that_is_run(families):
    run = {variant.name for variant in variants_of(families)} | {SASREC, PAPER_SASREC, POPULAR}
    claims = claims_of(families)
    assert {one.more for one in claims} | {one.less for one in claims} <= run
    assert {only(one) for one in families} <= {one.less for one in claims}


def test_files_that_are_no_results_are_refused(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"world": "a"')
    with pytest.raises(InputError, match=r"odd\.jsonl:1 is no result"):
        read_results([path])
    with pytest.raises(InputError, match="no results in"):
        read_results([])


def test_the_page_shows_directions_and_figures(answers, tmp_path):
    write_mme_page(tmp_path / "page.html", answers)
    page = Page(str(tmp_path / "page.html"))
    found = claim(answers, FULL, ALONE, GAIN)
    low, high = found["interval"]
    start = f"{FULL} ({found['more_mean']:.4f}), {ALONE} ({found['less_mean']:.4f})|nDCG@10; "
    (row,) = (row for row in page.rows if row and row[0].startswith(start))
    # The verdict comes before the figures: a narrow screen shows it without scrolling.
    assert row[1:] == ["reproduced", f"{found['difference']:+.4f}|{low:+.4f} to {high:+.4f}"]
    assert "trained WHOLE" not in page.text
    assert "random weights" in page.text
    figures = page.figures()
    assert set(figures) == {f"{name}-planted" for name in ("spectrum", "tau", "gain", "rank")}
    for figure in figures.values():
        go.Figure(figure)  # raises on a property that plotly does not know
    spectrum = figures["spectrum-planted"]["data"][0]
    assert spectrum["y"] == [0.7, 0.3, None]
    points = figures["gain-planted"]["data"][0]
    assert len(points["x"]) == len(points["y"]) == 21


def test_names_are_escaped(tmp_path):
    found = answer(read_results(write_lines(tmp_path, some_lines(HOSTILE))))
    write_mme_page(tmp_path / "page.html", found)
    page = Page(str(tmp_path / "page.html"))
    assert not any(tag == "img" for tag, _ in page.elements)
    assert HOSTILE in page.text


def test_print_claims_is_three_tables_a_world(answers, capsys):
    print_claims(answers)
    printed = capsys.readouterr().out
    for title in ("directions", "ranking", "diagnostics"):
        assert f"planted: {title}, 3 seeds" in printed
    assert "reversed" in printed


@pytest.mark.browser
def test_a_browser_draws_every_plot(answers, tmp_path):
    path = tmp_path / "page.html"
    write_mme_page(path, answers)
    dom, log = in_a_browser(str(path), tmp_path)
    assert dom.count('class="chart js-plotly-plot"') == len(Page(str(path)).figures())
    assert "Content Security Policy" not in log
