"""The numpy reader against the torch books, and without torch, Feast or Ray to import."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from feature_repo.codebook_reader import read_codebook, read_safetensors
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from models.mm_rq_vae import MmRqVaeOptions
from models.pq import PqOptions
from models.preprocess import MODES, Preprocess, joint
from models.psrq import PsrqOptions
from models.quantizers import fit_quantizer
from models.rq_vae_training import RqVaeOptions
from ray_jobs.codebook_store import write_codebook

ROWS, TEXT_DIMS, AUDIO_DIMS = 400, 10, 7
OPTIONS = {
    "psrq": PsrqOptions(levels=3, codes=16, prefix_weight=0.4),
    "rq_kmeans": PsrqOptions(levels=3, codes=16, prefix_weight=0.0),
    "vq": PsrqOptions(levels=1, codes=16),
    "pq": PqOptions(levels=4, codes=16),
    "rq_vae": RqVaeOptions(levels=2, codes=16, hidden=(12,), latent_dims=5, epochs=3),
    "mm_rq_vae": MmRqVaeOptions(levels=2, codes=16, hidden=(12, 9), latent_dims=5, epochs=2),
}


def vectors(rows=ROWS, seed=0):
    """Clustered text and audio; some tracks lack the audio, one both; and one lies on the mean."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(6, TEXT_DIMS + AUDIO_DIMS)) * 3
    x = (centres[random.integers(0, 6, rows)] + random.normal(size=(rows, 17)) + 2).astype("f4")
    x[:40, TEXT_DIMS:] = 0
    x[7] = 0
    return {"text": x[:, :TEXT_DIMS], "audio": x[:, TEXT_DIMS:]}


def prepared(preprocess, raw):
    return joint(
        {name: fitted.apply(torch.tensor(raw[name])) for name, fitted in preprocess.items()}
    )


def written(folder, method, mode="l2"):
    """A joint codebook as `quantize` stores it: its folder, the torch book, its preprocessing."""
    raw = vectors()
    preprocess = {name: Preprocess.fit(torch.tensor(raw[name]), mode, dims=5) for name in raw}
    book = fit_quantizer(prepared(preprocess, raw), OPTIONS[method]).book
    workspace = Workspace(folder)
    codebook_id = write_codebook(
        workspace,
        "joint",
        book,
        preprocess=preprocess,
        encoder_ids={"text": "t-1", "audio": "a-1"},
        options={},
        info={},
    )
    return workspace.codebooks / codebook_id, book, preprocess


@pytest.mark.parametrize("method", OPTIONS)
def test_encodes_and_decodes_as_the_torch_books_do(tmp_path, method):
    folder, book, preprocess = written(tmp_path, method)
    reader = read_codebook(folder)
    raw = vectors(3_000, seed=1)
    x = prepared(preprocess, raw)
    np.testing.assert_array_equal(reader.prepare(raw), x.numpy())
    codes = book.encode(x)
    np.testing.assert_array_equal(reader.encode(x.numpy()), codes.numpy())
    for levels in (*range(1, book.levels + 1), None):
        np.testing.assert_array_equal(
            reader.decode(codes.numpy(), levels), book.decode(codes, levels).numpy()
        )
    facts = (reader.method, reader.levels, reader.dims, reader.sizes, reader.family)
    assert facts == (book.method, book.levels, book.dims, book.sizes, "joint")


@pytest.mark.parametrize("mode", MODES)
def test_prepares_vectors_as_the_torch_step_does(tmp_path, mode):
    folder, _, preprocess = written(tmp_path, "vq", mode)
    raw = vectors(500, seed=2)
    found = read_codebook(folder).prepare(raw)
    np.testing.assert_allclose(found, prepared(preprocess, raw).numpy(), rtol=0, atol=6e-8)
    assert found.dtype == np.float32


def test_ties_go_to_the_lowest_code(tmp_path):
    """Copies of centroids, and rows half-way between two: integers, so every distance is exact."""
    folder, book, _ = written(tmp_path, "rq_kmeans", "none")
    random = np.random.default_rng(3)
    integers = random.integers(-2, 3, size=(3, 16, 17)).astype("f4")
    integers[:, 9] = integers[:, 4]
    reader = read_codebook(folder)
    reader.tensors.update({f"residual_{level}": rows for level, rows in enumerate(integers)})
    torch_book = type(book)(residuals=tuple(torch.tensor(rows) for rows in integers))
    x = random.integers(-3, 4, size=(2_000, 17)).astype("f4") / 2
    codes = reader.encode(x)
    np.testing.assert_array_equal(codes, torch_book.encode(torch.tensor(x)).numpy())
    assert 9 not in codes


def test_needs_numpy_alone(tmp_path):
    folder, book, preprocess = written(tmp_path, "psrq")
    raw = vectors(50, seed=4)
    np.savez(tmp_path / "raw.npz", **raw)
    code = f"""
        import json, sys
        from pathlib import Path

        known = {{"numpy", "feature_repo", *sys.stdlib_module_names}}

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] not in known:
                    raise ImportError(name)

        sys.meta_path.insert(0, Refuse())
        import numpy as np
        from feature_repo.codebook_reader import read_codebook

        book = read_codebook(Path({str(folder)!r}))
        codes = book.encode(book.prepare(dict(np.load({str(tmp_path / "raw.npz")!r}))))
        book.decode(codes)
        print(json.dumps(codes.tolist()))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == book.encode(prepared(preprocess, raw)).tolist()


def test_every_type_of_number_is_read(tmp_path):
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
        "b": torch.tensor([2**40, -1]),
        "c": torch.tensor(0.1, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "t.safetensors", metadata={"format": "pt"})
    found = read_safetensors(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())
        assert found[name].dtype == tensor.numpy().dtype


def test_refuses_what_does_not_fit(tmp_path):
    folder, book, _ = written(tmp_path, "psrq")
    reader = read_codebook(folder)
    x = np.zeros((3, 17), dtype="f4")
    with pytest.raises(InputError, match=r"takes rows of 17 dims, got shape \(3, 16\)"):
        reader.encode(x[:, 1:])
    x[1, 2] = np.nan
    with pytest.raises(InputError, match="row 1 holds a value that is not finite; 1 of 3 rows"):
        reader.encode(x)
    with pytest.raises(InputError, match=r"takes vectors of \['audio', 'text'\], got \['text'\]"):
        reader.prepare({"text": x[:, :10]})
    with pytest.raises(InputError, match=r"modality audio .* takes rows of 7 dims"):
        reader.prepare({"text": np.zeros((3, 10)), "audio": np.zeros((3, 8))})
    with pytest.raises(InputError, match=r"got rows \{'text': 3, 'audio': 2\}"):
        reader.prepare({"text": np.zeros((3, 10)), "audio": np.zeros((2, 7))})
    with pytest.raises(InputError, match="codes of level 1 must be 0 to 15"):
        reader.decode(np.array([[0, 16, 0]]))
    with pytest.raises(InputError, match="4 levels asked of a codebook of 3"):
        reader.decode(np.zeros((1, 4), dtype=int), 4)
    assert reader.encode(np.zeros((0, 17))).shape == (0, book.levels)


@pytest.mark.parametrize("at", [3, 60, -1])
def test_a_flipped_byte_a_cut_and_a_missing_file_are_refused(tmp_path, at):
    folder, _, _ = written(tmp_path, "psrq")
    path = folder / "codebook.safetensors"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[at] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(
        ArtifactError, match=r"codebook\.safetensors was changed.*crescendo quantize"
    ):
        read_codebook(folder)
    path.write_bytes(whole[:at])
    with pytest.raises(ArtifactError, match=r"codebook\.safetensors was changed"):
        read_codebook(folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file codebook\.safetensors"):
        read_codebook(folder)
