"""What a new ranker begins with: centroids of every method, number statistics, refusals."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from feature_repo.artifacts import Manifest, write_artifact
from feature_repo.codebook_reader import read_codebook
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.code_embedding import CodeEmbedding
from models.number_rows import NumberStatistics
from models.quantizers import METHODS
from models.ranker_config import EMBEDDING_STD, RankerConfig
from models.rankers import build_ranker
from ray_jobs.ranker_start import start_tensors
from ray_jobs.training_set import NUMBERS_FILE
from tests.ray_jobs.test_codebook_store import write

GENERATION = "gen-ffffffffffff"
DATA = Manifest(kind="training_set", id="ts-1", parents={"generation": GENERATION})


def config(model, levels=3, codes=16, **changes) -> RankerConfig:
    return RankerConfig(
        model=model,
        id_rows=4,
        families=("text", "joint"),
        levels=levels,
        codes=codes,
        history_length=3,
        **changes,
    )


def generation_of(workspace, codebooks) -> None:
    manifest = Manifest(kind="generation", id=GENERATION, parents={"codebooks": codebooks})
    with write_artifact(workspace.generations / GENERATION, manifest):
        pass


@pytest.mark.parametrize("method", METHODS)
def test_the_sum_of_code_embeddings_is_the_reconstruction(tmp_path, method):
    workspace = Workspace(tmp_path)
    codebook_id, fitted, x, _ = write(workspace, method)
    generation_of(workspace, {"joint": codebook_id})
    book = read_codebook(workspace.codebooks / codebook_id)
    sizes = config("mcca_wo_msc", levels=book.levels, codes=max(book.sizes))
    (table,) = start_tensors(workspace, DATA, sizes, "centroids", seed=3).values()
    embed = CodeEmbedding(book.levels, max(book.sizes), 64)
    embed.table.weight.data.copy_(table)
    codes = fitted.encode(x)
    with torch.inference_mode():
        ours = embed(codes).numpy().astype(np.float64)
    if method.endswith("rq_vae"):  # its codes add up to the latent vector
        stem = [book.tensors[f"codebook_{level}"] for level in range(book.levels)]
        theirs = sum(rows[codes[:, level].numpy()] for level, rows in enumerate(stem))
    else:
        theirs = book.decode(codes.numpy())
    theirs = theirs.astype(np.float64)
    scale = np.square(ours).sum() / np.square(theirs).sum()
    np.testing.assert_allclose(
        ours @ ours.T, scale * theirs @ theirs.T, atol=1e-5 * np.abs(ours @ ours.T).max()
    )
    held = np.abs(table.numpy()).sum(-1) > 0
    assert np.sqrt(np.square(table.numpy()[held]).mean()) == pytest.approx(EMBEDDING_STD, rel=0.1)


def test_random_code_tables_and_no_numbers_leave_the_ranker_as_it_is(tmp_path):
    assert start_tensors(Workspace(tmp_path), DATA, config("mcca"), "random", seed=0) == {}


def test_number_statistics_are_those_of_the_training_set(tmp_path):
    workspace, names = Workspace(tmp_path), ("plays", "hour_sin")
    folder = workspace.training_sets / DATA.id
    folder.mkdir(parents=True)
    statistics = NumberStatistics(names)
    statistics.add(np.array([[1, 0.5], [7, -0.5]], dtype=np.float32))
    save_file(statistics.tensors(), folder / NUMBERS_FILE)
    wanted = config("dnn", numbers=names)
    tensors = start_tensors(workspace, DATA, wanted, "random", seed=0)
    ranker = build_ranker(wanted)
    ranker.load_state_dict({**ranker.state_dict(), **tensors})
    np.testing.assert_allclose(ranker.numbers.mean_N, [2 * np.log(2), 0], atol=1e-6)
    np.testing.assert_allclose(ranker.numbers.spread_N, [np.log(2), 0.5], atol=1e-6)


def test_centroids_of_nothing_are_refused(tmp_path):
    workspace = Workspace(tmp_path)
    generation_of(workspace, {})
    with pytest.raises(InputError, match="code_start must be random for din"):
        start_tensors(workspace, DATA, config("din"), "centroids", seed=0)
    with pytest.raises(InputError, match=r"no codebook of family (text|joint).*code-start random"):
        start_tensors(workspace, DATA, config("mcca"), "centroids", seed=0)
