"""Rows split over two plain processes, joined by gloo: sums, and fits equal to one process's."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import spawn

from models.kmeans import kmeans
from models.psrq import PsrqOptions, fit
from models.rows import Centroids, Prefix
from models.shards import Shards

CUTS = {0: slice(0, 700), 1: slice(700, 1001)}
"""The rows of each process: uneven on purpose."""
WEIGHT = 0.6


def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    centres_KD = torch.randn(9, 6, generator=generator) * 2
    picks_N = torch.randint(9, (1001,), generator=generator)
    return centres_KD[picks_N] + torch.randn(1001, 6, generator=generator)


def repeated() -> torch.Tensor:
    """Five distinct rows only, each in both processes."""
    return rows()[:5].repeat(201, 1)[:1001]


def by_size() -> torch.Tensor:
    """Sorted, so that each process has clusters of which the other has no row."""
    x_ND = rows()
    return x_ND[x_ND[:, 0].argsort(stable=True)]


def prefix_of(part: slice) -> Prefix:
    generator = torch.Generator().manual_seed(4)
    codes_NJ = torch.randint(7, (1001, 2), generator=generator)
    books = tuple(torch.randn(7, 6, generator=generator) for _ in range(2))
    return Prefix(codes_NJ=codes_NJ[part], books=books, weight=WEIGHT)


def far_start(k: int, *, prefix: bool = False) -> Centroids:
    """All but two centroids so far away that their clusters are empty at first."""
    x_KD = torch.full((k, 6), 1e4) + torch.arange(k)[:, None]
    x_KD[:2] = rows()[:2]
    return Centroids(x_KD=x_KD, prefix_KD=torch.zeros(k, 6) if prefix else None)


def fits(part: slice, group: dist.ProcessGroup | None) -> dict[str, torch.Tensor]:
    """Every fit that is compared: centroids, codes, and how it went."""
    x_ND, same_ND = rows()[part], repeated()[part]
    found = {
        "plain": kmeans(x_ND, 12, group=group),
        "prefix": kmeans(x_ND, 12, prefix=prefix_of(part), group=group),
        "empty": kmeans(x_ND, 12, start=far_start(12), group=group),
        "empty_prefix": kmeans(
            x_ND, 12, prefix=prefix_of(part), start=far_start(12, prefix=True), group=group
        ),
        "repeated": kmeans(same_ND, 8, group=group),
        "sorted": kmeans(by_size()[part], 12, group=group),
        "one_pass": kmeans(x_ND, 40, iterations=1, group=group),
    }
    tensors = {}
    for name, result in found.items():
        tensors[f"{name}.x_KD"] = result.centroids.x_KD
        if result.centroids.prefix_KD is not None:
            tensors[f"{name}.prefix_KD"] = result.centroids.prefix_KD
        tensors[f"{name}.codes_N"] = result.codes_N
        tensors[f"{name}.counts"] = torch.tensor([result.iterations, result.repaired])
        tensors[f"{name}.objective"] = torch.tensor([result.objective], dtype=torch.float64)
    book, codes_NL, trace = fit(x_ND, PsrqOptions(codes=10), group=group)
    assert trace.auto is not None
    tensors |= {f"psrq.{name}": tensor for name, tensor in book.tensors().items()}
    tensors["psrq.codes_N"] = codes_NL
    tensors["psrq.objective"] = torch.tensor([trace.auto.weight], dtype=torch.float64)
    return tensors


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    x_ND = rows()[CUTS[rank]]
    group = dist.group.WORLD
    shards = Shards(len(x_ND), group)
    index_S = torch.tensor([1000, 0, 700, 699, 0])
    mine = torch.tensor([float(rank + 1), -0.25])
    tensors = {
        "place": torch.tensor([shards.first, shards.rows, shards.total]),
        "sum": shards.sum(mine),
        "mine": mine,
        "gather": shards.gather(x_ND, index_S),
        "gather_int": shards.gather(torch.arange(1001)[CUTS[rank]], index_S),
        "concatenate": shards.concatenate(mine),
        "agree": shards.agree(torch.tensor([5, 6 + rank])),
    }
    tensors |= fits(CUTS[rank], group)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    spawn(run_rank, (folder,), nprocs=2)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    return fits(slice(0, 1001), None)


def test_each_knows_its_place_and_all_see_the_same_values(both):
    assert [found["place"].tolist() for found in both] == [[0, 700, 1001], [700, 301, 1001]]
    for rank, found in enumerate(both):
        assert found["sum"].tolist() == [3.0, -0.5]
        assert found["mine"].tolist() == [rank + 1, -0.25]  # a sum leaves what it was given
        assert torch.equal(found["gather"], rows()[[1000, 0, 700, 699, 0]])
        assert found["gather_int"].tolist() == [1000, 0, 700, 699, 0]
        assert found["concatenate"].tolist() == [1, -0.25, 2, -0.25]
        assert found["agree"].tolist() == [5, 6]


def test_without_a_group_nothing_changes():
    shards, x_ND = Shards(1001), rows()
    assert (shards.first, shards.rows, shards.total) == (0, 1001, 1001)
    index_S = torch.tensor([8, 2])
    assert torch.equal(shards.gather(x_ND, index_S), x_ND[[8, 2]])
    for same in (shards.sum, shards.concatenate, shards.agree):
        assert torch.equal(same(x_ND), x_ND)


@pytest.mark.parametrize(
    "name",
    ["plain", "prefix", "empty", "empty_prefix", "repeated", "sorted", "one_pass", "psrq"],
)
def test_two_processes_fit_what_one_does(both, alone, name):
    parts = [found[f"{name}.codes_N"] for found in both]
    assert [len(part) for part in parts] == [700, 301]
    assert torch.equal(torch.cat(parts), alone[f"{name}.codes_N"])
    shared = [key for key in alone if key.startswith(f"{name}.") and not key.endswith("codes_N")]
    for key in shared:
        for found in both:
            if key.endswith("objective"):  # sums of squares are rounded, sums of rows are not
                torch.testing.assert_close(found[key], alone[key], rtol=1e-9, atol=1e-6)
            else:
                assert torch.equal(found[key], alone[key]), key


def test_the_cases_are_what_they_say(alone):
    """Clusters were empty and filled, or could not be, in the fits that claim so."""
    for name in ("empty", "empty_prefix"):
        assert alone[f"{name}.counts"][1] >= 9
        assert len(alone[f"{name}.codes_N"].unique()) == 12
    halves = [set(alone["sorted.codes_N"][part].tolist()) for part in CUTS.values()]
    assert halves[0] - halves[1]
    assert halves[1] - halves[0]
    assert len(alone["repeated.codes_N"].unique()) == 5
    assert float(alone["repeated.objective"]) == pytest.approx(0, abs=1e-6)
