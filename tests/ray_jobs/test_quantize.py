"""Embeddings -> codebooks -> generation -> new tracks, on the files that other tools read."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from feature_repo.artifacts import read_manifest
from feature_repo.errors import ArtifactError, InputError
from feature_repo.schema import TRACKS
from feature_repo.workspace import Workspace
from ray_jobs.assign import assign
from ray_jobs.embed import EmbedOptions, embed
from ray_jobs.quantize import QuantizeOptions, quantize

TRACK_COUNT, TEXT_DIMS, AUDIO_DIMS = 80, 12, 6
OPTIONS = QuantizeOptions(levels=3, codes=8, prefix_weight=0.5)


def write_tracks(workspace: Workspace, count: int, seed: int = 0) -> None:
    """A catalogue whose vectors form clusters; track 3 has no audio, track 4 has neither."""
    random = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {
        "track_id": pa.array(np.arange(1, count + 1)),
        "title": pa.array([f"track {n}" for n in range(1, count + 1)]),
    }
    for name, dims, without in (("text", TEXT_DIMS, {4}), ("audio", AUDIO_DIMS, {3, 4})):
        centres = random.normal(size=(5, dims)) * 3
        rows = centres[np.arange(count) % 5] + random.normal(size=(count, dims))
        values = [None if n + 1 in without else row for n, row in enumerate(rows.astype("f4"))]
        columns[f"{name}_vector"] = pa.array(values, type=pa.list_(pa.float32(), dims))
    table = pa.table(columns)
    for field in TRACKS:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(count, field.type))
    workspace.tracks.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, workspace.tracks / "part-0.parquet")


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
    weight = manifest.info["prefix_weight"]
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


def test_new_tracks_are_appended_and_published_ids_never_move(quantized):
    workspace, result = quantized
    before = ids(workspace, result["generation_id"])
    assert assign(workspace)["assigned"] == 0
    assert ids(workspace, result["generation_id"]).equals(before)
    write_tracks(workspace, TRACK_COUNT + 10)
    embed_all(workspace)
    answer = assign(workspace, result["generation_id"])
    after = ids(workspace, result["generation_id"])
    assert (answer["assigned"], answer["unchanged"]) == (10, TRACK_COUNT - 1)
    assert after.slice(0, TRACK_COUNT - 1).equals(before)
    assert after["track_id"].to_pylist()[-10:] == list(range(TRACK_COUNT + 1, TRACK_COUNT + 11))
    read_manifest(
        workspace.generations / result["generation_id"], kind="generation", made_by="quantize"
    )


@pytest.mark.parametrize(
    ("method", "levels", "prefixes"), [("rq", 3, 0), ("vq", 1, 0), ("psrq", 3, 2)]
)
def test_methods_are_special_cases_of_one_format(quantized, method, levels, prefixes):
    workspace, _ = quantized
    options = QuantizeOptions(method=method, codes=8, prefix_weight=0.5, modalities=("text",))
    result = quantize(workspace, options)
    assert list(result["codebook_ids"]) == ["text"]  # one modality needs no joint family
    folder = workspace.codebooks / result["codebook_ids"]["text"]
    names = load_file(folder / "codebook.safetensors")
    assert sum(name.startswith("residual_") for name in names) == levels
    assert sum(name.startswith("prefix_") for name in names) == prefixes


def test_a_modality_without_embeddings_names_the_command(tmp_path):
    with pytest.raises(ArtifactError, match="crescendo embed --modality text"):
        quantize(Workspace(tmp_path), OPTIONS)


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "pq"), ("levels", 0), ("codes", 0), ("prefix_weight", -1.0), ("modalities", ())],
)
def test_bad_options_name_field_and_value(field, value):
    with pytest.raises(InputError, match=field):
        QuantizeOptions(**{field: value})
