"""What the quality job can be asked for: curves, any generation; what it refuses or leaves."""

import os
from dataclasses import replace

import pytest

from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from ray_jobs.quality import QualityOptions, quality
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from tests.ray_jobs.html_page import Page
from tests.ray_jobs.measured import CODES, COUNT, stored

pytest_plugins = ["tests.ray_jobs.measured"]


def test_a_given_curve_stands_beside_rq_auto_and_literal(made, fresh):
    workspace, generation_id = fresh
    options = QualityOptions(generation=generation_id, curve=(0.1, 2.0), rows=60)
    _, families = quality(workspace, options)
    assert families[0].measures == stored(made[2])["text"]["measures"]
    asked = QuantizeOptions(modalities=("text",), codes=CODES, prefix_weight=0.5)
    quantize(workspace, asked)
    answer, (text,) = quality(workspace, replace(options, generation=None))
    found = text.comparison
    weights = sorted({0.0, 0.1, found.auto.weight, 0.5, 1.0, 2.0})
    assert [one.weight for one in found.fits] == weights
    assert (found.rq.weight, found.literal.weight) == (0.0, 1.0)
    assert (found.rows, found.measures["rows"], text.measures["rows"]) == (60, 60, 400)
    page = Page(answer["path"])
    assert "the same 60 sampled of 400 tracks" in page.text
    assert "0.5<br>this" in page.figures()["buys-text"]["data"][0]["x"]
    assert page.row("Prefix weight") == ["0.5", "0", f"{found.auto.weight:.3g}", "1"]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "rq_kmeans"},
        {"method": "pq"},
        {"method": "vq"},
        {"method": "rq_vae", "epochs": 2},
        {"method": "psrq", "collisions": "extra_level"},
        {"method": "psrq", "balance": 1.5, "prefix_weight": 0.6},
    ],
    ids=["rq_kmeans", "pq", "vq", "rq_vae", "extra level", "balanced"],
)
def test_any_generation_can_be_measured(fresh, options):
    workspace, _ = fresh
    asked = QuantizeOptions(modalities=("text",), codes=CODES, **options)
    quantized = quantize(workspace, asked)
    generation_id = quantized["generation_id"]
    answer, families = quality(workspace, QualityOptions(generation=generation_id, curve=()))
    assert list(answer["families"]) == ["text"]
    (family,) = families
    page = Page(answer["path"])
    assert generation_id in page.text
    if options["method"] == "vq":
        assert family.comparison is None
        assert "nothing to compare" in page.text
        assert "rq" not in answer["families"]["text"]
        return
    own = {"rq_kmeans": 0.0, "pq": None, "rq_vae": None}.get(
        options["method"], family.comparison.own_weight
    )
    assert family.comparison.own_weight == own
    if options["method"] == "rq_kmeans":
        assert family.comparison.measures == family.comparison.rq.measures
    if "collisions" in options:
        unresolved = quantized["families"]["text"]["unresolved"]
        assert family.measures["full"]["distinct"] == COUNT - unresolved
        assert len(family.measures["levels"]) == 3
        assert "extra_level" in page.text
    if "balance" in options:
        assert 0.6 in [one.weight for one in family.comparison.fits]
        assert max(row["gini"] for row in family.measures["levels"]) < 0.35


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"rows": 1}, "rows must be at least 2, got 1"),
        ({"curve": (0.1, -0.5)}, "curve must hold numbers of at least 0, got -0.5"),
        ({"curve": (float("nan"),)}, "curve must hold numbers of at least 0, got nan"),
    ],
)
def test_bad_options_name_field_and_value(arguments, reason):
    with pytest.raises(InputError, match=reason):
        QualityOptions(**arguments)


def test_what_is_missing_is_named_with_its_command(tmp_path, made):
    with pytest.raises(ArtifactError, match="crescendo quantize"):
        quality(Workspace(tmp_path), QualityOptions())
    with pytest.raises(ArtifactError, match=r"no generation gen-0: .*crescendo quantize"):
        quality(made[0], QualityOptions(generation="gen-0"))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_earlier_page_and_numbers(fresh, monkeypatch, failing):
    workspace, _ = fresh
    before = {path.name: path.read_bytes() for path in workspace.reports.iterdir()}
    assert len(before) == 2

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        quality(workspace, QualityOptions(curve=(), rows=50))
    after = {path.name: path.read_bytes() for path in workspace.reports.glob("quality-*")}
    assert after == before
