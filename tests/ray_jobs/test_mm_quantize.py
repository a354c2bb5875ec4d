"""`quantize --method mm_rq_vae`: a generation of all modalities' books, alone and by workers."""

import os
import signal
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from feature_repo.artifacts import read_manifest
from feature_repo.codebook_reader import read_codebook as read_numpy_codebook
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from models.mm_rq_vae import MmRqVaeOptions
from models.mm_rq_vae_training import fit
from ray_jobs import mm_quantize_workers
from ray_jobs.assign import assign
from ray_jobs.code_embeddings import read_code_embeddings
from ray_jobs.codebook_store import read_codebook
from ray_jobs.embed import read_embeddings
from ray_jobs.mm_quantize import side_by_side
from ray_jobs.mm_quantize_workers import fit_modalities_in_workers
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions, default_sizes
from tests.embedded import clustered, write_catalogue

DIMS = {"collaborative": 6, "text": 9, "audio": 5}
WITHOUT = {"text": {3, 4}, "audio": {4, 5}}
OPTIONS = QuantizeOptions(
    method="mm_rq_vae",
    modalities=tuple(DIMS),
    levels=2,
    codes=8,
    hidden=(12,),
    epochs=3,
    batch_size=40,
)


def catalogue(folder, count=90) -> Workspace:
    workspace = Workspace(folder)
    write_catalogue(workspace, clustered(count, DIMS), without=WITHOUT)
    return workspace


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    workspace = catalogue(tmp_path_factory.mktemp("workspace"))
    return workspace, quantize(workspace, OPTIONS)


def ids(workspace, generation_id):
    path = workspace.generations / generation_id / "ids.parquet"
    return {row["track_id"]: row for row in pq.read_table(path).to_pylist()}


def test_a_family_a_modality_and_no_joint_one(quantized):
    workspace, result = quantized
    assert list(result["codebook_ids"]) == list(DIMS)
    rows = ids(workspace, result["generation_id"])
    assert list(rows[1]) == ["track_id", "collaborative_sid", "text_sid", "audio_sid"]
    assert len(rows) == 90
    assert [len(rows[4][f"{name}_sid"]) for name in DIMS] == [2, 0, 0]
    assert [len(rows[5][f"{name}_sid"]) for name in DIMS] == [2, 2, 0]
    folder = workspace.generations / result["generation_id"]
    manifest = read_manifest(folder, kind="generation", made_by="quantize")
    assert manifest.info["families"] == list(DIMS)
    assert (manifest.info["levels"], manifest.info["codes"]) == (2, 8)
    assert set(manifest.info["quality"]) == set(result["families"]) == set(DIMS)
    assert manifest.options["alignment"] == "infonce"


def test_published_codes_are_the_nearest_by_torch_and_by_numpy(quantized):
    workspace, result = quantized
    rows = ids(workspace, result["generation_id"])
    for family, codebook_id in result["codebook_ids"].items():
        track_ids, vectors, _ = read_embeddings(workspace, family)
        published = np.array([rows[track_id][f"{family}_sid"] for track_id in track_ids])
        book, preprocess, manifest = read_codebook(workspace, codebook_id)
        x = preprocess[family].apply(torch.tensor(vectors))
        np.testing.assert_array_equal(book.encode(x), published)
        reader = read_numpy_codebook(workspace.codebooks / codebook_id)
        np.testing.assert_array_equal(reader.encode(reader.prepare({family: vectors})), published)
        decoded = book.decode(torch.tensor(published)).numpy()
        np.testing.assert_array_equal(reader.decode(published), decoded)
        assert book.method == "mm_rq_vae"
        trace = manifest.info["fit"]
        assert len(trace["reconstruction"]) == len(trace["quantization"]) == 3
        assert (trace["alignment"] is None) == (family == "collaborative")  # the anchor


def test_the_books_are_those_of_the_fit_without_ray(quantized):
    workspace, result = quantized
    x = {}
    for family, codebook_id in result["codebook_ids"].items():
        track_ids, vectors, _ = read_embeddings(workspace, family)
        fitted = read_codebook(workspace, codebook_id)[1][family]
        x[family] = torch.zeros(90, DIMS[family])
        x[family][track_ids - 1] = fitted.apply(torch.tensor(vectors))
    books = fit(x, MmRqVaeOptions(levels=2, codes=8, hidden=(12,), epochs=3, batch_size=40))
    for family, (book, _) in books.items():
        stored = read_codebook(workspace, result["codebook_ids"][family])[0].tensors()
        assert all(torch.equal(stored[name], t) for name, t in book.tensors().items())


def test_the_same_options_give_the_same_generation_and_others_another(quantized):
    workspace, result = quantized
    assert quantize(workspace, OPTIONS)["generation_id"] == result["generation_id"]
    for changes in ({"alignment": "none"}, {"reconstruction": "mse"}, {"anchor": "text"}):
        other = quantize(workspace, replace(OPTIONS, **changes))
        assert other["generation_id"] != result["generation_id"], changes
    fewer = quantize(workspace, replace(OPTIONS, sample_rows=50))
    assert fewer["tracks"] == 90
    rows = read_codebook(workspace, fewer["codebook_ids"]["text"])[2].info["fitting"]["rows"]
    assert 40 <= rows <= 50  # the tracks of the sample that have a text


def test_new_tracks_get_codes_from_the_frozen_books(tmp_path):
    workspace = catalogue(tmp_path, 60)
    result = quantize(workspace, OPTIONS)
    before = ids(workspace, result["generation_id"])
    write_catalogue(workspace, clustered(75, DIMS), without=WITHOUT)
    assert assign(workspace, result["generation_id"])["assigned"] == 15
    after = ids(workspace, result["generation_id"])
    assert {track_id: after[track_id] for track_id in before} == before
    assert all(len(after[track_id]["text_sid"]) == 2 for track_id in range(61, 76))


def test_code_embeddings_are_the_latent_books(quantized):
    workspace, result = quantized
    found = read_code_embeddings(workspace, result["generation_id"])
    assert list(found) == list(DIMS)
    for family, embeddings_LKZ in found.items():
        folder = workspace.codebooks / result["codebook_ids"][family]
        tensors = load_file(folder / "codebook.safetensors")
        assert embeddings_LKZ.shape == (2, 8, 64)
        for level in range(2):
            np.testing.assert_array_equal(embeddings_LKZ[level], tensors[f"codebook_{level}"])
    with pytest.raises(ArtifactError, match="crescendo quantize --method mm_rq_vae"):
        read_code_embeddings(workspace, "gen-0")
    plain = quantize(workspace, QuantizeOptions(modalities=("text",), levels=2, codes=8))
    with pytest.raises(InputError, match=r"made by psrq.*--method mm_rq_vae"):
        read_code_embeddings(workspace, plain["generation_id"])


def test_any_set_of_modalities_is_fitted_without_a_collaborative_one_too(tmp_path):
    workspace = Workspace(tmp_path)
    write_catalogue(workspace, clustered(60, {"image": 7, "text": 5}))
    result = quantize(workspace, replace(OPTIONS, modalities=("image", "text"), epochs=1))
    rows = ids(workspace, result["generation_id"])
    assert list(rows[1]) == ["track_id", "image_sid", "text_sid"]
    assert set(read_code_embeddings(workspace, result["generation_id"])) == {"image", "text"}


def test_one_modality_and_collisions(quantized):
    workspace, _ = quantized
    alone = replace(OPTIONS, modalities=("audio",), collisions="extra_level")
    result = quantize(workspace, alone)
    rows = [row["audio_sid"] for row in ids(workspace, result["generation_id"]).values()]
    assert {len(row) for row in rows} == {3}
    assert (
        len({tuple(row) for row in rows}) == len(rows) - result["families"]["audio"]["unresolved"]
    )
    assert read_code_embeddings(workspace, result["generation_id"])["audio"].shape == (2, 8, 64)


def test_what_cannot_be_fitted_is_refused_before_anything_is_written(tmp_path):
    workspace = Workspace(tmp_path)
    vectors = clustered(40, {"text": 4, "audio": 3})
    write_catalogue(
        workspace, vectors, without={"text": set(range(1, 21)), "audio": set(range(21, 41))}
    )
    options = replace(OPTIONS, modalities=("text", "audio"))
    with pytest.raises(InputError, match=r"codes=21 is more than the 20 tracks that family text"):
        quantize(workspace, replace(options, codes=21))
    with pytest.raises(InputError, match=r"alignment=infonce needs items that have both text and"):
        quantize(workspace, options)
    with pytest.raises(InputError, match=r"--align-to works for .* got method 'mm_rq_vae'"):
        quantize(workspace, replace(options, align_to="gen-0"))
    for folder in (workspace.codebooks, workspace.generations):
        assert not folder.exists() or list(folder.iterdir()) == []
    assert quantize(workspace, replace(options, alignment="none"))["tracks"] == 40


def test_default_sizes_are_those_of_the_papers():
    assert default_sizes("mm_rq_vae") == (4, 256)
    assert default_sizes("psrq") == (3, 128)
    options = QuantizeOptions(method="mm_rq_vae", modalities=("text",), levels=4, codes=256)
    assert options.quantizer() == MmRqVaeOptions()


def family_inputs(rows=300):
    vectors = clustered(rows, {"text": 7, "audio": 5})
    ids = np.arange(rows) * 3 + 1
    return {
        "text": (ids[30:], torch.tensor(vectors["text"][30:])),
        "audio": (ids[:-20], torch.tensor(vectors["audio"][:-20])),
    }


@pytest.mark.slow
def test_workers_do_what_one_does_where_rows_stand_alone(tmp_path, ray_local):
    """Level losses, mean square error, no Sinkhorn to tell apart (one row of codes): to rounding.

    With 2 workers gradients are summed in another order, so values are close and not equal.
    """
    families = family_inputs()
    options = MmRqVaeOptions(
        levels=1,
        codes=1,
        hidden=(8,),
        latent_dims=4,
        epochs=4,
        batch_size=64,
        learning_rate=1e-3,
        reconstruction="mse",
        alignment="none",
    )
    x, rows = side_by_side(families)
    alone = fit(x, options)
    together = fit_modalities_in_workers(
        families, options, workers=2, device="auto", folder=tmp_path
    )
    for name, fitted in together.items():
        book, trace = alone[name]
        for tensor, values in book.tensors().items():
            torch.testing.assert_close(fitted.book.tensors()[tensor], values, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(fitted.trace.reconstruction, trace.reconstruction, rtol=1e-4)
        np.testing.assert_allclose(fitted.trace.quantization, trace.quantization, rtol=1e-3)
        assert torch.equal(fitted.codes_NL, fitted.book.encode(families[name][1]))
        assert len(rows[name]) == len(fitted.codes_NL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_workers_publish_a_generation_and_say_so(quantized, ray_local):
    workspace, result = quantized
    split = quantize(workspace, replace(OPTIONS, workers=2))
    assert split["generation_id"] != result["generation_id"]  # MMD of half a batch each
    folder = workspace.generations / split["generation_id"]
    assert read_manifest(folder, kind="generation", made_by="quantize").options["workers"] == 2
    for family, codebook_id in split["codebook_ids"].items():
        book, preprocess, _ = read_codebook(workspace, codebook_id)
        track_ids, vectors, _ = read_embeddings(workspace, family)
        codes = book.encode(preprocess[family].apply(torch.tensor(vectors)))
        rows = ids(workspace, split["generation_id"])
        published = [rows[track_id][f"{family}_sid"] for track_id in track_ids]
        np.testing.assert_array_equal(codes, published)


@pytest.mark.slow
def test_a_worker_that_dies_in_a_fit_ends_it_and_nothing_is_written(
    tmp_path, monkeypatch, ray_local
):
    workspace = catalogue(tmp_path, 60)
    fits = mm_quantize_workers.worker_fits

    def dies(settings):
        import ray.train

        fits(settings)  # all workers are there, and have worked together
        if ray.train.get_context().get_world_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return fits(settings)

    monkeypatch.setattr(mm_quantize_workers, "worker_fits", dies)
    with pytest.raises(RuntimeError, match=r"the fit ended because .*worker.*nothing was written"):
        quantize(workspace, replace(OPTIONS, workers=2))
    for folder in (workspace.codebooks, workspace.generations):
        assert not folder.exists() or list(folder.iterdir()) == []
