"""Embeddings -> codebooks -> a generation, on the files that other tools read."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from feature_repo.artifacts import file_sha256, read_manifest
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from ray_jobs.codebook_store import read_codebook
from ray_jobs.embed import EmbedOptions, embed, read_embeddings
from ray_jobs.quantize import quantize, resolve_device
from ray_jobs.quantize_options import QuantizeOptions
from tests.embedded import write_track_table

TRACK_COUNT, TEXT_DIMS, AUDIO_DIMS = 80, 12, 6
OPTIONS = QuantizeOptions(levels=3, codes=8, prefix_weight=0.5)


def write_tracks(workspace: Workspace, count: int, seed: int = 0) -> None:
    """A catalogue whose vectors form clusters; track 3 has no audio, track 4 has neither."""
    random = np.random.default_rng(seed)
    columns = {}
    for name, dims, without in (("text", TEXT_DIMS, {4}), ("audio", AUDIO_DIMS, {3, 4})):
        centres = random.normal(size=(5, dims)) * 3
        rows = centres[np.arange(count) % 5] + random.normal(size=(count, dims))
        values = [None if n + 1 in without else row for n, row in enumerate(rows.astype("f4"))]
        columns[f"{name}_vector"] = pa.array(values, type=pa.list_(pa.float32(), dims))
    write_track_table(workspace, count, columns)


def embed_all(workspace: Workspace) -> None:
    for modality in ("text", "audio"):
        embed(workspace, EmbedOptions(modality=modality, encoder="vectors"))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, ray_local):
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    write_tracks(workspace, TRACK_COUNT)
    embed_all(workspace)
    return workspace, quantize(workspace, OPTIONS)


def ids(workspace, generation_id):
    return pq.read_table(workspace.generations / generation_id / "ids.parquet")


def test_a_family_a_modality_and_the_joint_one(quantized):
    workspace, result = quantized
    assert list(result["codebook_ids"]) == ["text", "audio", "joint"]
    table = ids(workspace, result["generation_id"])
    assert table.column_names == ["track_id", "text_sid", "audio_sid", "joint_sid"]
    assert table.num_rows == TRACK_COUNT - 1  # track 4 has nothing to be known by
    rows = {row["track_id"]: row for row in table.to_pylist()}
    assert rows[3]["audio_sid"] == []
    assert len(rows[3]["text_sid"]) == len(rows[3]["joint_sid"]) == 3
    assert all(0 <= code < 8 for row in rows.values() for code in row["joint_sid"])


def test_anybody_can_decode_the_files_with_numpy(quantized):
    """The documented format alone: residual_0, residual_l, prefix_l, preprocessing beside them."""
    workspace, result = quantized
    folder = workspace.codebooks / result["codebook_ids"]["audio"]
    tensors = load_file(folder / "codebook.safetensors")
    manifest = read_manifest(folder, kind="codebook", made_by="quantize")
    weight = manifest.info["settings"]["prefix_weight"]
    raw = pq.read_table(workspace.tracks / "part-0.parquet")
    table = ids(workspace, result["generation_id"])
    stored = {row["track_id"]: row["audio_sid"] for row in table.to_pylist()}
    for track_id, vector in zip(
        raw["track_id"].to_pylist(), raw["audio_vector"].to_pylist(), strict=True
    ):
        if vector is None:
            continue
        x = np.array(vector) - tensors["audio.mean"]
        x /= np.linalg.norm(x)
        prefix, codes = np.zeros_like(x), []
        for level in range(3):
            residual = x - prefix
            distance = ((residual - tensors[f"residual_{level}"]) ** 2).sum(1)
            if level:
                distance += weight**2 * ((prefix - tensors[f"prefix_{level}"]) ** 2).sum(1)
            codes.append(int(distance.argmin()))
            prefix = prefix + tensors[f"residual_{level}"][codes[-1]]
        assert stored[track_id] == codes


def test_the_same_embeddings_give_the_same_ids(quantized):
    workspace, result = quantized
    assert quantize(workspace, OPTIONS)["generation_id"] == result["generation_id"]


NET_NAMES = {
    *(
        f"{mlp}_{part}_{n}"
        for mlp in ("encoder", "decoder")
        for part in ("weight", "bias")
        for n in range(3)
    ),
    "codebook_0",
    "codebook_1",
    "codebook_2",
}
NAMES = {
    "psrq": {"residual_0", "residual_1", "residual_2", "prefix_1", "prefix_2"},
    "rq_kmeans": {"residual_0", "residual_1", "residual_2"},
    "vq": {"residual_0"},
    "pq": {"subspace_0", "subspace_1", "subspace_2", "mean"},
    "rq_vae": NET_NAMES,
    "mm_rq_vae": NET_NAMES,
}


@pytest.mark.parametrize("method", NAMES)
def test_every_method_makes_the_same_generation(quantized, method):
    """Its book under its own names; everything else alike, and readable by its manifest."""
    workspace, _ = quantized
    options = QuantizeOptions(
        method=method, codes=8, prefix_weight=0.5, modalities=("text",), epochs=3
    )
    result = quantize(workspace, options)
    assert list(result["codebook_ids"]) == ["text"]  # one modality needs no joint family
    folder = workspace.codebooks / result["codebook_ids"]["text"]
    names = set(load_file(folder / "codebook.safetensors"))
    assert names == NAMES[method] | {"text.mean"}
    book, _, manifest = read_codebook(workspace, result["codebook_ids"]["text"])
    assert book.method == manifest.info["settings"]["method"] == method
    levels = 1 if method == "vq" else 3
    generation = generation_manifest(workspace, result)
    assert (generation.info["levels"], generation.info["codes"]) == (levels, 8)
    table = ids(workspace, result["generation_id"])
    assert {len(row) for row in table["text_sid"].to_pylist()} == {levels}
    if method != "mm_rq_vae":  # MMD does not ask that a vector comes back to its own place
        assert result["families"]["text"]["relative_mse"] < 1
    assert manifest.info["quality"] == generation.info["quality"]["text"]
    assert set(manifest.info) >= {"fit", "fitting"}


def generation_manifest(workspace, result):
    folder = workspace.generations / result["generation_id"]
    return read_manifest(folder, kind="generation", made_by="quantize")


def matrix(workspace, result, family="text"):
    return np.array(ids(workspace, result["generation_id"])[f"{family}_sid"].to_pylist())


def test_what_the_fit_found_is_recorded(quantized):
    workspace, _ = quantized
    options = QuantizeOptions(codes=8, prefix_weight="auto", modalities=("text",))
    result = quantize(workspace, options)
    book, _, manifest = read_codebook(workspace, result["codebook_ids"]["text"])
    found = manifest.info["fit"]
    assert found["auto"]["weight"] == manifest.info["settings"]["prefix_weight"]
    assert found["auto"]["weight"] == pytest.approx(0.5 * found["auto"]["break_even"])
    assert [level["iterations"] > 0 for level in found["levels"]] == [True] * 3
    assert book.prefix_weight == found["auto"]["weight"]


def test_balanced_codes_are_published_and_recorded(quantized):
    workspace, _ = quantized
    options = replace(OPTIONS, modalities=("text",), balance=1.0)
    result = quantize(workspace, options)
    codes = matrix(workspace, result)
    limit = -(-len(codes) // 8)
    for level in range(3):
        assert np.bincount(codes[:, level], minlength=8).max() == limit
    assert generation_manifest(workspace, result).info["balance"] == 1.0
    book, _, manifest = read_codebook(workspace, result["codebook_ids"]["text"])
    recorded = manifest.info["balance"]
    assert recorded["largest"] == [limit] * 3
    assert 0 < recorded["moved_share"] <= 1
    assert book.method == "psrq"
    plain = quantize(workspace, replace(options, balance=None))
    assert plain["generation_id"] != result["generation_id"]
    assert generation_manifest(workspace, plain).info["balance"] is None


@pytest.mark.parametrize("method", ["psrq", "rq_kmeans", "pq", "rq_vae", "mm_rq_vae"])
def test_next_best_tells_tracks_apart(quantized, method):
    workspace, _ = quantized
    shared = QuantizeOptions(method=method, levels=2, codes=6, modalities=("text",), epochs=3)
    before = quantize(workspace, shared)
    result = quantize(workspace, replace(shared, collisions="next_best"))
    assert result["codebook_ids"] == before["codebook_ids"]  # the books do not change
    assert result["generation_id"] != before["generation_id"]
    codes, plain = matrix(workspace, result), matrix(workspace, before)
    assert len(np.unique(plain, axis=0)) < len(plain)
    family = result["families"]["text"]
    assert len(np.unique(codes, axis=0)) == len(codes) - family["unresolved"]
    assert (codes != plain).any(1).sum() == family["moved"] > 0
    assert (codes[:, 0] == plain[:, 0]).all()
    assert family["distinct_codes"] == len(codes) - family["unresolved"]
    recorded = generation_manifest(workspace, result).info["collisions"]
    assert recorded["mode"] == "next_best"
    assert recorded["families"]["text"]["moved"] == family["moved"]


def test_an_extra_level_numbers_the_tracks_of_an_id(quantized):
    workspace, _ = quantized
    shared = QuantizeOptions(method="vq", codes=40, modalities=("text",))
    result = quantize(workspace, replace(shared, collisions="extra_level"))
    codes = matrix(workspace, result)
    assert codes.shape[1] == generation_manifest(workspace, result).info["levels"] == 2
    assert len(np.unique(codes, axis=0)) == len(codes)
    groups = Counter(codes[:, 0].tolist())
    assert max(groups.values()) > 1
    for code, size in groups.items():
        assert codes[codes[:, 0] == code, 1].tolist() == list(range(size))  # in track order
    plain = matrix(workspace, quantize(workspace, shared))
    assert (plain[:, 0] == codes[:, 0]).all()


def test_a_fit_on_a_sample_codes_all_tracks(quantized):
    workspace, _ = quantized
    options = replace(OPTIONS, modalities=("text",), sample_rows=40)
    result = quantize(workspace, options)
    assert result["tracks"] == TRACK_COUNT - 1
    book, preprocess, manifest = read_codebook(workspace, result["codebook_ids"]["text"])
    assert manifest.info["fitting"]["rows"] == 40
    track_ids, vectors, _ = read_embeddings(workspace, "text")
    expected = book.encode(preprocess["text"].apply(torch.tensor(vectors)))
    assert (matrix(workspace, result) == expected.numpy()).all()
    again = quantize(workspace, options)["codebook_ids"]
    assert again == result["codebook_ids"]
    other = quantize(workspace, replace(options, seed=1))["codebook_ids"]
    whole = quantize(workspace, replace(options, sample_rows=10_000))["codebook_ids"]
    assert len({again["text"], other["text"], whole["text"]}) == 3
    assert len(track_ids) == TRACK_COUNT - 1


def test_a_modality_without_embeddings_names_the_command(tmp_path):
    with pytest.raises(ArtifactError, match="crescendo embed --modality text"):
        quantize(Workspace(tmp_path), OPTIONS)


def artifacts(workspace):
    return sorted([*workspace.codebooks.glob("*"), *workspace.generations.glob("*")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": 200}, r"codes=200 is more than the 79 tracks that family text .*--codes 19"),
        ({"codes": 30, "sample_rows": 20}, r"codes=30 is more than the 20 tracks"),
        ({"method": "pq", "levels": 7}, r"levels=7 is more than the 6 dims of family audio"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_anything_is_written(quantized, changes, message):
    workspace, _ = quantized
    before = artifacts(workspace)
    with pytest.raises(InputError, match=message):
        quantize(workspace, replace(OPTIONS, **changes))
    assert artifacts(workspace) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
def test_a_vector_that_cannot_be_clustered_is_named_by_its_track(tmp_path, ray_local, value):
    workspace = Workspace(tmp_path)
    write_tracks(workspace, 20)
    embed_all(workspace)
    folder = workspace.embeddings("audio", read_embeddings(workspace, "audio")[2])
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        table = pq.read_table(folder / name)
        rows = table["vector"].to_pylist()
        if 7 in table["track_id"].to_pylist():
            rows[table["track_id"].to_pylist().index(7)][2] = value
        field = table.field("vector")
        pq.write_table(table.set_column(1, field, pa.array(rows, field.type)), folder / name)
        manifest["files"][name] = file_sha256(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"audio vectors of .*: 1 of 18 .*the first of track 7"):
        quantize(workspace, replace(OPTIONS, codes=4))
    assert artifacts(workspace) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "rq"),
        ("levels", 0),
        ("codes", 0),
        ("prefix_weight", -1.0),
        ("modalities", ()),
        ("balance", 0.5),
        ("collisions", "first"),
        ("sample_rows", 0),
        ("device", "tpu"),
    ],
)
def test_bad_options_name_field_and_value(field, value):
    with pytest.raises(InputError, match=field):
        QuantizeOptions(**{field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rq_vae", "balance": 1.2}, "k-means methods, not rq_vae"),
        ({"method": "rq_vae", "epochs": 0}, "epochs must be"),
        ({"method": "mm_rq_vae", "balance": 1.2}, "k-means methods, not mm_rq_vae"),
        ({"method": "mm_rq_vae", "alignment": "cosine"}, "alignment must be one of"),
        ({"method": "mm_rq_vae", "reconstruction": "l1"}, "reconstruction must be one of"),
        ({"method": "mm_rq_vae", "anchor": "image"}, r"anchor must be one of .*got 'image'"),
        ({"balance": 1.2, "sample_rows": 50}, "give one of the two"),
        ({"method": "vq", "collisions": "next_best"}, "use extra_level"),
        ({"levels": 1, "collisions": "next_best"}, "use extra_level"),
    ],
)
def test_options_that_do_not_go_together_say_so(options, message):
    with pytest.raises(InputError, match=message):
        QuantizeOptions(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there(quantized):
    assert resolve_device("auto").type == resolve_device("cpu").type == "cpu"
    with pytest.raises(InputError, match=r"device=cuda.*--device cpu"):
        quantize(quantized[0], replace(OPTIONS, device="cuda"))
