"""Fits that Ray Train workers split: the same books and codes as one worker's, or nothing."""

import os
import signal
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from feature_repo.artifacts import read_manifest
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.psrq import AUTO_ROWS, PsrqOptions
from models.quantizers import fit_quantizer
from models.residual_codebook import Codebook
from ray_jobs import quantize_workers
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.quantize_workers import Job, fit_in_workers
from tests.embedded import clustered, write_catalogue

OPTIONS = QuantizeOptions(modalities=("text",), levels=2, codes=6, iterations=4)


def rows(count: int, dims: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres_KD = torch.randn(11, dims, generator=generator) * 2
    picks_N = torch.randint(11, (count,), generator=generator)
    return centres_KD[picks_N] + torch.randn(count, dims, generator=generator)


def far_book() -> Codebook:
    """Books of 12 codes of which ten are nobody's nearest: empty clusters from the first step."""
    far_KD = torch.full((12, 8), 1e4) + torch.arange(12)[:, None]
    first_KD = torch.cat([rows(2, 8), far_KD[2:]])
    second_KD = torch.cat([torch.zeros(1, 8), far_KD[1:]])
    return Codebook(residuals=(first_KD, second_KD), prefixes=(first_KD,), prefix_weight=0.4)


def jobs() -> dict[str, Job]:
    x_ND = rows(1001, 8)
    start, _ = fit_start()
    return {
        "uneven rows": Job(x_ND=x_ND, options=PsrqOptions(codes=20)),
        "weight from a sample": Job(
            x_ND=rows(AUTO_ROWS + 4_465, 4), options=PsrqOptions(levels=2, codes=8, iterations=3)
        ),
        "empty clusters": Job(x_ND=x_ND, options=PsrqOptions(levels=2, codes=12), start=far_book()),
        "few rows": Job(x_ND=rows(50, 8), options=PsrqOptions(codes=30, prefix_weight=1.0)),
        "few distinct rows": Job(x_ND=x_ND[:5].repeat(20, 1), options=PsrqOptions(codes=9)),
        "start": Job(x_ND=x_ND, options=PsrqOptions(codes=12), start=start),
        "rq": Job(x_ND=x_ND, options=PsrqOptions(codes=12, prefix_weight=0.0)),
        "vq": Job(x_ND=x_ND, options=PsrqOptions(levels=1, codes=12)),
    }


def fit_start() -> tuple[Codebook, torch.Tensor]:
    fitted = fit_quantizer(rows(400, 8, seed=1), PsrqOptions(codes=12))
    assert isinstance(fitted.book, Codebook)
    return fitted.book, fitted.codes_NL


@pytest.mark.slow
def test_workers_fit_what_one_does(tmp_path, ray_local):
    by_name, workers = jobs(), 3  # two make a generation below
    together = fit_in_workers(
        list(by_name.values()), workers=workers, device="auto", folder=tmp_path
    )
    for (name, job), fitted in zip(by_name.items(), together, strict=True):
        alone = fit_quantizer(job.x_ND, job.options, start=job.start)
        assert torch.equal(fitted.codes_NL, alone.codes_NL), name
        assert fitted.book.settings() == alone.book.settings(), name
        theirs, ours = fitted.book.tensors(), alone.book.tensors()
        assert list(theirs) == list(ours), name
        for tensor in ours:
            assert torch.equal(theirs[tensor], ours[tensor]), (name, tensor)
        for level, one in zip(fitted.trace.levels, alone.trace.levels, strict=True):
            assert (level.iterations, level.repaired) == (one.iterations, one.repaired), name
            # Sums of squares are rounded in another order.
            assert level.objective == pytest.approx(one.objective, rel=1e-9, abs=1e-6), name
            assert level.relative_mse == pytest.approx(one.relative_mse, rel=1e-9, abs=1e-9), name
        assert fitted.trace.auto == alone.trace.auto, name
        if name == "empty clusters":
            assert fitted.trace.levels[0].repaired >= 10
        if name == "weight from a sample":
            assert fitted.trace.auto.rows == AUTO_ROWS > len(job.x_ND) / workers
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def catalogue(tmp_path):
    workspace = Workspace(tmp_path)
    write_catalogue(workspace, clustered(45, {"text": 5}))
    return workspace


@pytest.mark.slow
def test_a_generation_is_the_same_whoever_fits_it_and_says_who_did(catalogue, ray_local):
    first = quantize(catalogue, OPTIONS)["generation_id"]
    again = replace(OPTIONS, align_to=first, sample_rows=40, seed=1)
    split = quantize(catalogue, replace(again, workers=2))
    folder = catalogue.generations / split["generation_id"]
    assert read_manifest(folder, kind="generation", made_by="quantize").options["workers"] == 2
    table = pq.read_table(folder / "ids.parquet")
    alone = quantize(catalogue, again)
    assert alone["codebook_ids"] == split["codebook_ids"]
    assert alone["generation_id"] == split["generation_id"] != first
    assert pq.read_table(folder / "ids.parquet") == table
    assert alone["alignment"] == split["alignment"]


@pytest.mark.slow
def test_a_worker_that_dies_in_a_fit_ends_it_and_nothing_is_written(
    catalogue, monkeypatch, ray_local
):
    fits = quantize_workers.worker_fits

    def dies(settings):
        import ray.train

        fits(settings)  # all workers are there, and have worked together
        if ray.train.get_context().get_world_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return fits(settings)

    monkeypatch.setattr(quantize_workers, "worker_fits", dies)
    with pytest.raises(RuntimeError, match=r"the fit ended because .*worker.*nothing was written"):
        quantize(catalogue, replace(OPTIONS, workers=2))
    for folder in (catalogue.codebooks, catalogue.generations):
        assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.parametrize("method", ["pq", "rq_vae"])
def test_methods_that_cannot_be_split_are_refused(method):
    with pytest.raises(InputError, match=rf"workers=2 works for psrq, .*mm_rq_vae, not {method}"):
        QuantizeOptions(method=method, workers=2)


def test_balance_and_senseless_numbers_are_refused(catalogue):
    with pytest.raises(InputError, match=r"balance=1.5 needs all rows in one worker.*workers=2"):
        QuantizeOptions(balance=1.5, workers=2)
    with pytest.raises(InputError, match="workers must be at least 1, got 0"):
        QuantizeOptions(workers=0)
    with pytest.raises(InputError, match=r"workers=46 is more than the 45 tracks.*--workers"):
        quantize(catalogue, replace(OPTIONS, workers=46))


def test_more_workers_or_devices_than_ray_has_are_refused(tmp_path, ray_local):
    job = Job(x_ND=rows(600, 4), options=PsrqOptions(codes=4))
    with pytest.raises(InputError, match=r"500 workers need a CPU each.*--workers"):
        fit_in_workers([job], workers=500, device="cpu", folder=tmp_path)
    with pytest.raises(InputError, match=r"workers=601 is more than the 600 rows"):
        fit_in_workers([job], workers=601, device="cpu", folder=tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"2 workers need a GPU each, Ray has 0.*--device cpu"):
            fit_in_workers([job], workers=2, device="cuda", folder=tmp_path)
    x_ND = rows(600, 4)
    x_ND[417, 2] = torch.nan
    with pytest.raises(ValueError, match="row 417 holds a value that is not finite"):
        fit_in_workers([replace(job, x_ND=x_ND)], workers=2, device="cpu", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
