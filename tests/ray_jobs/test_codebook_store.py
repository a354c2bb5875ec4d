"""A codebook's files: the same book comes back, and anything else is refused with the command."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from feature_repo.artifacts import MANIFEST, file_sha256
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from models.preprocess import Preprocess, joint
from models.quantizers import METHODS, fit_quantizer
from ray_jobs.codebook_store import CODEBOOK_FILE, read_codebook, write_codebook
from tests.models.blobs import blobs
from tests.models.test_quantizers import OPTIONS

ENCODERS = {"text": "text-encoder-1", "audio": "audio-encoder-2"}


def write(workspace, method, **changes):
    vectors = {"text": blobs(200, 6, 9), "audio": blobs(200, 4, 9, seed=1)}
    preprocess = {
        "text": Preprocess.fit(vectors["text"], "standard"),
        "audio": Preprocess.fit(vectors["audio"], "l2"),
    }
    x = joint({name: fitted.apply(vectors[name]) for name, fitted in preprocess.items()})
    book = fit_quantizer(x, OPTIONS[method]).book
    given = {"preprocess": preprocess, "encoder_ids": ENCODERS, "options": {}, "info": {}}
    return write_codebook(workspace, "joint", book, **(given | changes)), book, x, vectors


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_comes_back(tmp_path, method):
    workspace = Workspace(tmp_path)
    options, info = {"method": method}, {"quality": {"rows": 200}}
    codebook_id, book, x, vectors = write(workspace, method, options=options, info=info)
    back, preprocess, manifest = read_codebook(workspace, codebook_id)
    assert torch.equal(back.encode(x), book.encode(x))
    assert list(preprocess) == ["text", "audio"]  # the order of the book's dims
    again = joint({name: fitted.apply(vectors[name]) for name, fitted in preprocess.items()})
    assert torch.equal(again, x)
    assert manifest.info == {
        "settings": book.settings(),
        "family": "joint",
        "preprocess": {"text": "standard", "audio": "l2"},
        "quality": {"rows": 200},
    }
    assert manifest.parents == {"embeddings": ENCODERS}
    assert manifest.options == options


def test_the_id_is_made_from_the_content(tmp_path):
    workspace = Workspace(tmp_path)
    first = write(workspace, "psrq")[0]
    assert write(workspace, "psrq", info={"note": "another"})[0] == first
    assert write(workspace, "rq_kmeans")[0] != first
    assert write(workspace, "psrq", encoder_ids=ENCODERS | {"text": "text-encoder-2"})[0] != first


def test_a_missing_or_changed_one_names_the_command(tmp_path):
    workspace = Workspace(tmp_path)
    codebook_id = write(workspace, "pq")[0]
    path = workspace.codebooks / codebook_id / CODEBOOK_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"was changed; run `crescendo quantize`"):
        read_codebook(workspace, codebook_id)
    with pytest.raises(ArtifactError, match=r"no codebook codebook-none.*crescendo quantize"):
        read_codebook(workspace, "codebook-none")


@pytest.mark.parametrize("damage", ["old", "tensor", "width", "mode", "method"])
def test_another_format_is_refused_with_the_command(tmp_path, damage):
    """Whole by its sha256, but not what this version writes."""
    workspace = Workspace(tmp_path)
    codebook_id = write(workspace, "pq")[0]
    folder = workspace.codebooks / codebook_id
    tensors = load_file(folder / CODEBOOK_FILE)
    manifest = json.loads((folder / MANIFEST).read_text())
    if damage == "old":
        settings = manifest["info"].pop("settings")
        manifest["info"] |= settings
    if damage == "tensor":
        del tensors["subspace_1"]
    if damage == "width":
        tensors["mean"] = tensors["mean"][:-1].contiguous()
    if damage == "mode":
        manifest["info"]["preprocess"]["text"] = "l2"
    if damage == "method":
        manifest["info"]["settings"]["method"] = "lattice"
    save_file(tensors, folder / CODEBOOK_FILE)
    manifest["files"] = {CODEBOOK_FILE: file_sha256(folder / CODEBOOK_FILE)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"not one that this version reads.*crescendo quantize"):
        read_codebook(workspace, codebook_id)
