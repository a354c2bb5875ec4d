"""MM-RQ-VAE fitted by two plain processes, joined by gloo: what equals one process's fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import spawn

from models.mm_rq_vae_training import MmRqVaeOptions, fit
from tests.models.blobs import blobs

ALL = MmRqVaeOptions(
    levels=2,
    codes=12,
    hidden=(16,),
    latent_dims=4,
    epochs=6,
    batch_size=100,
    learning_rate=2e-3,
    seed=3,
)
ROW_BY_ROW = replace(ALL, codes=1, reconstruction="mse", alignment="none", distillation_weight=0.5)
"""Terms that are sums over rows; one code, so that Sinkhorn has nothing to share."""


def vectors() -> dict[str, torch.Tensor]:
    """Audio of so few items that a process's share of a batch may have none."""
    x = {"text": blobs(401, 6, 9), "audio": blobs(401, 5, 9, seed=1)}
    x["audio"][4:] = 0
    x["text"][390:] = 0
    return x


def fits(group: dist.ProcessGroup | None) -> dict[str, torch.Tensor]:
    tensors = {}
    for case, options in (("all", ALL), ("row by row", ROW_BY_ROW)):
        for name, (book, trace) in fit(vectors(), options, group=group).items():
            tensors |= {f"{case}.{name}.{key}": t for key, t in book.tensors().items()}
            for curve in ("reconstruction", "quantization"):
                values = torch.tensor(getattr(trace, curve), dtype=torch.float64)
                tensors[f"{case}.{name}.trace.{curve}"] = values
    return tensors


def run(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    save_file(fits(dist.group.WORLD), Path(folder) / f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    spawn(run, (str(folder),), nprocs=2)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    return fits(None)


def test_both_have_the_same_books_and_traces(found):
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        assert torch.equal(values, found[1][name]), name


def test_terms_that_are_sums_over_rows_train_as_in_one_process(found, alone):
    """To rounding: the gradients of a batch are added up in another order."""
    names = [name for name in alone if name.startswith("row by row.")]
    assert len(names) > 20
    for name in names:
        np.testing.assert_allclose(found[0][name], alone[name], rtol=2e-3, atol=2e-5, err_msg=name)


def test_terms_of_a_whole_batch_see_half_of_it_and_still_train(found, alone):
    curve = "all.text.trace.reconstruction"
    assert not torch.equal(found[0][curve], alone[curve])
    assert found[0][curve][-1] < found[0][curve][0]
    assert all(values.isfinite().all() for values in found[0].values())
