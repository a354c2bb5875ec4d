"""`crescendo collapse` and `forgetting` of a trained model and of a generation."""

import json
import shutil
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from safetensors.torch import load_file
from scipy.stats import kendalltau

from feature_repo.artifacts import newest
from feature_repo.errors import ArtifactError, InputError
from feature_repo.mme_sid_reader import read_mme_sid
from feature_repo.workspace import Workspace
from ray_jobs.generation_vectors import family_ids
from ray_jobs.mme_diagnostics import DiagnosticsOptions, collapse, forgotten
from ray_jobs.mme_sid import train_mme_sid
from ray_jobs.next_item_set import read_next_items
from ray_jobs.report import report
from ray_jobs.report.diagnostics_page import print_collapse, print_forgetting
from tests.ray_jobs.html_page import Page
from tests.ray_jobs.mme_sid_world import DIMS, published_world, small
from tests.ray_jobs.sequence_world import LENGTH


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The workspace, a model's options and a generation's."""
    workspace, base = published_world(tmp_path_factory.mktemp("diagnostics"))
    model_id = train_mme_sid(workspace, small(base, epochs=1))["model_id"]
    generation = newest(workspace.generations, kind="generation", made_by="quantize").id
    return (
        workspace,
        DiagnosticsOptions(model_id=model_id),
        DiagnosticsOptions(generation=generation, length=LENGTH),
    )


def effective_rank(table):
    sigma = np.linalg.svd(table, compute_uv=False)
    p = sigma[sigma > 0] / sigma.sum()
    return np.exp(-(p * np.log(p)).sum())


@pytest.mark.slow
def test_a_models_tables_have_the_ranks_of_its_tensors(made):
    workspace, model, _ = made
    answer, spectra = collapse(workspace, model)
    kinds = ("semantic IDs", "raw", "projected")
    expected = {f"{family} {kind}" for family in DIMS for kind in kinds}
    assert set(answer["tables"]) == expected | {"read by the LLM", "scored with"}
    own = load_file(workspace.models / model.name / "mme_sid.safetensors")
    raw = own["items.raw_0"][1:]
    projected = raw @ own["items.projections.0.weight"].T
    matrix = read_mme_sid(workspace, model.name).item_matrix_ID[1:]
    for name, table in (
        ("text raw", raw.numpy()),
        ("text projected", projected.numpy()),
        ("scored with", matrix),
    ):
        found = answer["tables"][name]["effective_rank"]
        assert found == pytest.approx(effective_rank(table.astype(np.float64)), rel=1e-3)
        assert spectra[name].rows == len(table)


def test_a_generations_taus_are_scipys(made):
    workspace, _, of_generation = made
    answer, taus = forgotten(workspace, of_generation)
    generation = newest(workspace.generations, kind="generation", made_by="quantize")
    ids = {one.name: one for one in family_ids(workspace, generation)}["audio"]
    books = load_file(
        workspace.codebooks / generation.parents["codebooks"]["audio"] / "codebook.safetensors"
    )
    summed = sum(books[f"codebook_{level}"][ids.codes_NL[:, level]] for level in range(2))
    row = {track: place for place, track in enumerate(ids.track_id_N.tolist())}
    assert 3 not in row  # the track without audio
    sets = [path for path in workspace.training_sets.iterdir() if path.name.startswith("ni-")]
    assert len(sets) == 1
    data = read_next_items(sets[0])
    held = data.held_out("test")
    expected = []
    for user, end in enumerate(np.cumsum(held.lengths_V)):
        rows = held.rows_P[end - held.lengths_V[user] : end][-LENGTH:]
        heard = [int(data.track_ids_I[one]) for one in rows]
        target = int(data.track_ids_I[held.targets_V[user]])
        places = [row[track] for track in heard if track in row]
        if target not in row or len(places) < 2:
            expected.append(np.nan)
            continue
        near = [
            [float((space[place] - space[row[target]]).double().square().sum()) for place in places]
            for space in (ids.x_ND, summed)
        ]
        expected.append(kendalltau(*near).statistic)
    found = taus["audio code embeddings"]["distance"]
    np.testing.assert_allclose(found.tau_U, expected, atol=1e-6)
    plain = answer["taus"]["audio code embeddings"]["distance"]
    assert plain["tau"] == pytest.approx(np.nanmean(expected))


def test_a_models_spaces_are_compared_with_its_raw_embeddings(made):
    workspace, model, _ = made
    answer, _ = forgotten(workspace, model)
    kinds = ("projected", "semantic IDs")
    assert set(answer["taus"]) == {f"{family} {kind}" for family in DIMS for kind in kinds}
    for of_pair in answer["taus"].values():
        for found in of_pair.values():
            assert -1 <= found["tau"] <= 1
            assert found["users"] > 0


def test_pages_and_tables_show_what_was_measured(made, capsys):
    workspace, model, of_generation = made
    answer, spectra = collapse(workspace, of_generation)
    page = Page(answer["path"])
    found = answer["tables"]["text code embeddings"]
    shown = page.row("text code embeddings")
    assert shown[2] == f"{found['effective_rank']:.1f}"
    go.Figure(page.figures()["spectra"])
    values = json.loads(Path(answer["json"]).read_text())["singular_values"]["text vectors"]
    assert len(values) == DIMS["text"]
    print_collapse(spectra)
    assert "text code embeddings" in capsys.readouterr().out
    answer, taus = forgotten(workspace, model)
    page = Page(answer["path"])
    assert (
        page.row("text projected")[1]
        == f"{answer['taus']['text projected']['distance']['tau']:.4f}"
    )
    bars = page.figures()["taus"]
    go.Figure(bars)
    assert [trace["name"] for trace in bars["data"]] == ["by distance", "by cosine"]
    print_forgetting(taus)
    assert "text projected" in capsys.readouterr().out


def test_the_report_shows_them_of_the_newest_model(made):
    workspace, model, _ = made
    ranks, taus = collapse(workspace, model)[0]["tables"], forgotten(workspace, model)[0]["taus"]
    answer = report(workspace)
    page = Page(answer["path"])
    shown = page.row("text projected")
    assert shown[1] == f"{ranks['text projected']['effective_rank']:.1f}"
    assert shown[3] == f"{taus['text projected']['distance']['tau']:.4f}"
    assert page.row("scored with")[3] == ""
    assert len(page.row(str(model.model_id))) == 5
    go.Figure(page.figures()["mme-taus"])
    assert "study of its claims" in answer["left_out"]


def test_the_report_names_the_commands_that_measure_them(made, tmp_path):
    workspace = Workspace(tmp_path / "copy")
    shutil.copytree(made[0].root, workspace.root, ignore=shutil.ignore_patterns("reports"))
    answer = report(workspace)
    text = Page(answer["path"]).text
    for command in ("collapse", "forgetting"):
        assert f"{workspace.root} {command} --model-id {made[1].model_id}" in text
    assert {"spectrum of its tables", "Kendall's tau"} <= set(answer["left_out"])
    (workspace.reports / f"collapse-{made[1].model_id}.json").write_text("{")
    assert "is not JSON" in Page(report(workspace)["path"]).text


def test_what_is_not_there_is_refused(made):
    workspace = made[0]
    for wrong in ({}, {"model_id": "a", "generation": "b"}):
        with pytest.raises(InputError, match="a model id or a generation, and not both"):
            DiagnosticsOptions(**wrong)
    with pytest.raises(ArtifactError, match="no model model-x"):
        collapse(workspace, DiagnosticsOptions(model_id="model-x"))
    with pytest.raises(ArtifactError, match="no generation gen-x"):
        forgotten(workspace, DiagnosticsOptions(generation="gen-x"))
