"""k-means and the search on a CUDA device against the CPU's exact codes; skipped without one."""

import pytest
import torch

from models.centroid_scores import CentroidScores
from models.kmeans import kmeans
from models.kmeans_start import initial_centroids
from models.means import Means
from models.nearest import nearest
from models.psrq import PsrqOptions, assign, fit
from models.rows import Centroids, Prefix
from models.shards import Shards
from tests.models.blobs import blobs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = torch.device("cuda")


def draw(n: int, d: int, k: int, earlier: int, *, whole: bool = False, seed: int = 0):
    """Rows, centroids and a prefix of `earlier` books with k, k + 1, ... codes."""
    x = blobs(n, d, 3 * k, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = x.round() if whole else x
    pick = torch.randperm(n, generator=generator)[:k]
    prefix = None
    if earlier:
        sizes = [k + j for j in range(earlier)]
        books = tuple(torch.randn(size, d, generator=generator) * 0.5 for size in sizes)
        books = tuple(book.round() for book in books) if whole else books
        codes = [torch.randint(0, size, (n,), generator=generator) for size in sizes]
        prefix = Prefix(codes_NJ=torch.stack(codes, 1), books=books, weight=0.5)
    prefix_KD = prefix.rows(pick) if prefix else None
    return x, Centroids(x_KD=x[pick].clone(), prefix_KD=prefix_KD), prefix


def on_cuda(centroids: Centroids, prefix: Prefix | None) -> tuple[Centroids, Prefix | None]:
    prefix_KD = None if centroids.prefix_KD is None else centroids.prefix_KD.cuda()
    if prefix is not None:
        books = tuple(book.cuda() for book in prefix.books)
        prefix = Prefix(codes_NJ=prefix.codes_NJ.cuda(), books=books, weight=prefix.weight)
    return Centroids(x_KD=centroids.x_KD.cuda(), prefix_KD=prefix_KD), prefix


@pytest.mark.parametrize("shape", [(3000, 100, 70), (777, 33, 5), (500, 8, 300), (900, 1100, 64)])
@pytest.mark.parametrize("earlier", [0, 1, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_exact_codes_are_those_of_the_cpu(shape, earlier, whole):
    """Whole numbers make exact ties: they go to the lowest code on both."""
    x, centroids, prefix = draw(*shape, earlier, whole=whole)
    found = nearest(x.cuda(), *on_cuda(centroids, prefix)).cpu()
    assert torch.equal(found, nearest(x, centroids, prefix))


@pytest.mark.parametrize("earlier", [0, 2])
def test_rows_with_many_close_centroids_in_many_rounds(monkeypatch, earlier):
    """More rows are open than scores are held at once, each with dozens of candidates."""
    monkeypatch.setattr("models.cuda_choice.SCORES", 1)
    x, centroids, prefix = draw(1000, 40, 100, earlier)
    c = centroids.x_KD.mean(0) + 1e-5 * centroids.x_KD
    centroids = Centroids(x_KD=c, prefix_KD=centroids.prefix_KD)
    found = nearest(x.cuda(), *on_cuda(centroids, prefix)).cpu()
    assert torch.equal(found, nearest(x, centroids, prefix))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_proposals_hardly_miss_and_do_not_depend_on_scale_or_batch(scale):
    from models.cuda_rows import CudaNearest, PackedRows

    x, centroids, prefix = draw(5000, 96, 100, 2)
    x, centroids = x * scale, Centroids(
        x_KD=centroids.x_KD * scale, prefix_KD=centroids.prefix_KD * scale
    )  # fmt: skip
    prefix = Prefix(
        codes_NJ=prefix.codes_NJ, books=tuple(b * scale for b in prefix.books), weight=0.5
    )
    there, prefix_there = on_cuda(centroids, prefix)
    search = CudaNearest(CentroidScores(there, prefix_there.books, 0.5))
    codes = prefix_there.codes_NJ
    found = search.propose(PackedRows(x.cuda(), codes, search))
    assert (found.cpu() != nearest(x, centroids, prefix)).float().mean() < 0.002
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(3))[:1234].cuda()
    some = search.propose(PackedRows(x.cuda()[order], codes[order], search))
    assert torch.equal(some, found[order])


@pytest.mark.parametrize("earlier", [0, 2])
def test_a_fit_is_as_good_as_the_cpus_and_streaming_changes_nothing(earlier):
    x, start, prefix = draw(6000, 48, 40, earlier)
    there, prefix_there = on_cuda(start, prefix)
    cpu = kmeans(x, 40, prefix=prefix, start=start, iterations=8, tolerance=0)
    cuda = kmeans(x.cuda(), 40, prefix=prefix_there, start=there, iterations=8, tolerance=0)
    streamed = kmeans(
        x, 40, prefix=prefix, start=there, iterations=8, tolerance=0, device=DEVICE, part_rows=1700
    )
    assert cuda.objective == pytest.approx(cpu.objective, rel=5e-3)
    assert torch.equal(streamed.codes_N, cuda.codes_N.cpu())
    assert torch.equal(streamed.centroids.x_KD, cuda.centroids.x_KD)
    assert torch.equal(cuda.codes_N, nearest(x.cuda(), cuda.centroids, prefix_there))


@pytest.mark.parametrize("earlier", [0, 2])
def test_sums_after_many_moves_are_those_of_the_cpu_to_the_bit(earlier):
    x, start, prefix = draw(4000, 300, 30, earlier)
    there, prefix_there = on_cuda(start, prefix)
    cpu = Means(x, 30, prefix, torch.device("cpu"), Shards(4000))
    cuda = Means(x.cuda(), 30, prefix_there, DEVICE, Shards(4000))
    generator = torch.Generator().manual_seed(5)
    was = torch.full((4000,), -1)
    for share in (1.0, 0.5, 0.01, 0.0):
        moves = torch.rand(4000, generator=generator) < share
        now = torch.where(moves, torch.randint(0, 29, (4000,), generator=generator), was)
        codes = prefix.codes_NJ if prefix else None
        moved = cpu.move(x, codes, was, now)
        codes = None if codes is None else codes.cuda()
        assert int(cuda.move(x.cuda(), codes, was.cuda(), now.cuda())) == int(moved)
        was = now
    assert torch.equal(cuda.sums_KD.cpu(), cpu.sums_KD)
    assert torch.equal(cuda.counts_K.cpu(), cpu.counts_K)
    if prefix:
        assert torch.equal(cuda.pairs_JCK.cpu(), cpu.pairs_JCK)
    found, theirs = cuda.centroids(there)[0], cpu.centroids(start)[0]
    assert torch.equal(found.x_KD.cpu(), theirs.x_KD)


def test_empty_clusters_are_filled():
    x = torch.cat([torch.zeros(50, 2), torch.full((9, 2), 5.0), torch.tensor([[3.0, 0.0]])]).cuda()
    found = kmeans(x, 3, start=Centroids(x_KD=torch.zeros(3, 2).cuda()), iterations=10)
    assert found.objective == 0
    assert found.repaired == 2


def test_few_distinct_rows_start_from_all_of_them():
    distinct = blobs(6, 40, 6).cuda()
    start = initial_centroids(distinct.repeat(50, 1), 10).x_KD
    assert torch.equal(start[:6].unique(dim=0), distinct.unique(dim=0))


@pytest.mark.parametrize("weight", ["auto", 0.0, 1.0])
def test_a_psrq_fit_and_its_codes(weight):
    x = blobs(4000, 60, 90)
    book, codes, trace = fit(x, PsrqOptions(codes=32, prefix_weight=weight), device=DEVICE)
    theirs = fit(x, PsrqOptions(codes=32, prefix_weight=weight))[2]
    assert trace.levels[-1].relative_mse == pytest.approx(theirs.levels[-1].relative_mse, rel=0.05)
    assert torch.equal(assign(book, x), codes)
    assert torch.equal(book.encode(x.cuda()).cpu(), codes)
    far = x + 1000  # a far offset makes float16 products useless, and changes no answer
    assert torch.equal(book.encode(far.cuda()).cpu(), book.encode(far))


def test_bad_rows_are_named():
    book, _, _ = fit(blobs(300, 9, 5), PsrqOptions(codes=4, levels=2), device=DEVICE)
    x = blobs(20, 9, 2)
    x[7, 1] = float("nan")
    with pytest.raises(ValueError, match="row 7 "):
        book.encode(x.cuda())
