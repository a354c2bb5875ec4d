"""A refit that is aligned keeps IDs where it can, and says how many it could not."""

import shutil
from itertools import permutations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from feature_repo.artifacts import read_manifest
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from models.pq import PqOptions
from models.psrq import PsrqOptions
from models.quantizers import fit_quantizer
from ray_jobs.align import OldFamily, align, changed, rename, renamed_book, renaming
from ray_jobs.assign import assign
from ray_jobs.codebook_store import read_codebook
from ray_jobs.published_ids import published_ids
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from tests.embedded import clustered, write_catalogue
from tests.models.blobs import blobs

DIMS = {"text": 12, "audio": 6}
OPTIONS = {
    "psrq": PsrqOptions(levels=3, codes=16, prefix_weight=0.4),
    "rq_kmeans": PsrqOptions(levels=3, codes=16, prefix_weight=0.0),
    "vq": PsrqOptions(levels=1, codes=16),
    "pq": PqOptions(levels=3, codes=16),
}


def old_family(book, track_ids, codes_NL):
    return OldFamily(
        generation_id="gen-old",
        family="text",
        book=book,
        preprocess={},
        encoder_ids={},
        track_ids=track_ids,
        codes_NL=codes_NL,
    )


def shuffled(book, seed):
    """The same book with every level's codes renamed at random, and the renaming."""
    generator = torch.Generator().manual_seed(seed)
    names = [torch.randperm(size, generator=generator) for size in book.sizes]
    return renamed_book(book, names), names


def test_the_renaming_is_the_best_of_all():
    random = np.random.default_rng(0)
    for _ in range(20):
        before, after = random.integers(0, 5, (2, 40))
        found = renaming(torch.tensor(before), torch.tensor(after), 5).numpy()
        kept = (found[after] == before).sum()
        best = max((np.array(p)[after] == before).sum() for p in permutations(range(5)))
        assert sorted(found) == list(range(5))
        assert kept == best


def test_codes_that_nothing_decides_keep_their_names():
    before, after = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0])
    assert renaming(before, after, 6).tolist() == [1, 0, 2, 3, 4, 5]


@pytest.mark.parametrize("method", OPTIONS)
def test_a_renamed_book_says_the_same_under_other_names(method):
    x = blobs(600, 10, 9)
    found = fit_quantizer(x, OPTIONS[method])
    book, names = shuffled(found.book, 1)
    codes = book.encode(x)
    torch.testing.assert_close(codes, rename(found.codes_NL, names))
    assert (codes != found.codes_NL).any(1).float().mean() > 0.9
    for levels in range(1, book.levels + 1):
        expected = found.book.decode(found.codes_NL, levels)
        torch.testing.assert_close(book.decode(codes, levels), expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", OPTIONS)
def test_aligning_undoes_a_renaming(method):
    """Track ids that overlap in part; the tracks of both have the same vectors."""
    x = blobs(600, 10, 9)
    found = fit_quantizer(x, OPTIONS[method])
    old = old_family(found.book, np.arange(0, 500), found.codes_NL[:500])
    book, _ = shuffled(found.book, 2)
    aligned = align(old, np.arange(100, 600), book, book.encode(x[100:]))
    assert aligned.churn["tracks"] == 400
    assert min(aligned.churn["raw"]) > 0.8
    assert aligned.churn["aligned"] == [0.0] * book.levels
    torch.testing.assert_close(aligned.codes_NL, found.codes_NL[100:])
    torch.testing.assert_close(aligned.book.encode(x[100:]), aligned.codes_NL)
    for name, tensor in aligned.book.tensors().items():
        used = slice(None)
        if name != "mean":
            used = found.codes_NL[100:500, int(name.rpartition("_")[2])].unique()
        torch.testing.assert_close(tensor[used], found.book.tensors()[name][used])


def test_aligned_codes_are_those_of_the_aligned_book_also_with_copies():
    """Fewer distinct vectors than codes leave copies of rows: only the first is ever found."""
    x = blobs(12, 4, 3).repeat(5, 1)
    options = PsrqOptions(levels=2, codes=20, prefix_weight=0.3)
    before = fit_quantizer(x[:30], options)
    after = fit_quantizer(x, PsrqOptions(levels=2, codes=20, prefix_weight=0.3, seed=5))
    assert len(torch.unique(after.book.residuals[0], dim=0)) < 20
    old = old_family(before.book, np.arange(30), before.codes_NL)
    aligned = align(old, np.arange(60), after.book, after.codes_NL)
    torch.testing.assert_close(aligned.book.encode(x), aligned.codes_NL)
    torch.testing.assert_close(
        aligned.book.decode(aligned.codes_NL), after.book.decode(after.codes_NL), rtol=0, atol=0
    )


def test_churn_counts_what_changed_up_to_each_level():
    before = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]])
    after = torch.tensor([[0, 0, 0], [1, 1, 0], [2, 0, 2], [0, 3, 3]])
    assert changed(before, after) == [0.25, 0.5, 0.75]


# --- end to end ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A generation of 400 tracks by each method, made once."""
    made = {}

    def workspace(method, tmp_path, **options):
        key = (method, *options.items())
        if key not in made:
            made[key] = tmp_path_factory.mktemp("first")
            fresh = Workspace(made[key])
            write_catalogue(fresh, clustered(400, DIMS, clusters=9))
            quantize(fresh, QuantizeOptions(method=method, levels=3, codes=16, **options))
        shutil.copytree(made[key], tmp_path, dirs_exist_ok=True)
        (folder,) = (tmp_path / "generations").glob("gen-*")
        return Workspace(tmp_path), folder.name

    return workspace


@pytest.mark.parametrize("method", OPTIONS)
def test_a_refit_on_more_tracks_keeps_most_ids(first, tmp_path, method):
    workspace, old_id = first(method, tmp_path)
    path = workspace.generations / old_id / "ids.parquet"
    old_bytes = path.read_bytes()
    write_catalogue(workspace, clustered(600, DIMS, clusters=9))
    options = QuantizeOptions(method=method, levels=3, codes=16, align_to=old_id)
    answer = quantize(workspace, options)
    alignment = answer["alignment"]
    assert alignment["to"] == old_id
    manifest = read_manifest(
        workspace.generations / answer["generation_id"], kind="generation", made_by="quantize"
    )
    assert manifest.info["alignment"] == alignment
    assert path.read_bytes() == old_bytes
    # A fit with another seed, aligned to nothing, for comparison.
    cold = quantize(workspace, QuantizeOptions(method=method, levels=3, codes=16, seed=1))
    for family, churn in alignment["families"].items():
        assert churn["tracks"] == 400
        before = published_ids(path, family)[1]
        ids = {}
        for generation_id in (answer["generation_id"], cold["generation_id"]):
            found = workspace.generations / generation_id / "ids.parquet"
            ids[generation_id] = published_ids(found, family)[1][:400]
        assert churn["aligned"] == changed(before, ids[answer["generation_id"]])
        assert churn["aligned"] == sorted(churn["aligned"])
        assert churn["aligned"][-1] <= churn["raw"][-1]
        assert churn["aligned"][-1] < 0.7 * changed(before, ids[cold["generation_id"]])[-1]
        # The books are those of the new codes.
        codebook_id = answer["codebook_ids"][family]
        book, preprocess, _ = read_codebook(workspace, codebook_id)
        old_book = read_manifest(path.parent, kind="generation", made_by="quantize")
        old_preprocess = read_codebook(workspace, old_book.parents["codebooks"][family])[1]
        rows = clustered(600, DIMS, clusters=9)
        x = torch.cat([one.apply(torch.tensor(rows[name])) for name, one in preprocess.items()], 1)
        for name, one in preprocess.items():
            torch.testing.assert_close(one.mean_D, old_preprocess[name].mean_D, rtol=0, atol=0)
        found = workspace.generations / answer["generation_id"] / "ids.parquet"
        torch.testing.assert_close(published_ids(found, family)[1], book.encode(x))


def test_a_refit_on_the_same_tracks_changes_next_to_nothing(first, tmp_path):
    workspace, old_id = first("psrq", tmp_path, iterations=200)
    options = QuantizeOptions(levels=3, codes=16, iterations=200, align_to=old_id)
    for churn in quantize(workspace, options)["alignment"]["families"].values():
        assert churn["aligned"][-1] < 0.05
        assert churn["raw"] == churn["aligned"]


def test_assigned_tracks_are_aligned_too_and_collisions_are_told_apart_afterwards(first, tmp_path):
    workspace, old_id = first("psrq", tmp_path, collisions="extra_level")
    write_catalogue(workspace, clustered(450, DIMS, clusters=9))
    assert assign(workspace)["assigned"] == 50
    options = QuantizeOptions(levels=3, codes=16, collisions="extra_level", align_to=old_id)
    answer = quantize(workspace, options)
    churn = answer["alignment"]["families"]["joint"]
    assert churn["tracks"] == 450
    assert len(churn["aligned"]) == 3  # the books' levels: a number behind an ID is no code
    table = pq.read_table(workspace.generations / answer["generation_id"] / "ids.parquet")
    assert {len(row) for row in table["joint_sid"].to_pylist()} == {4}


def test_what_cannot_be_aligned_is_refused(first, tmp_path):
    workspace, old_id = first("psrq", tmp_path, prefix_weight=0.5)
    before = sorted(path for path in workspace.root.rglob("*"))

    def refit(**options):
        wanted = {"levels": 3, "codes": 16} | options
        quantize(workspace, QuantizeOptions(**wanted, align_to=old_id))

    for name, value, old in (
        ("levels", 2, 3),
        ("codes", 8, 16),
        ("method", "pq", "psrq"),
        ("preprocess", "standard", "l2"),
        ("modalities", ("text",), "text,audio"),
    ):
        with pytest.raises(InputError, match=rf"has {name} {old}, the refit .*--{name} {old}"):
            refit(**{name: value})
    with pytest.raises(InputError, match=r"--align-to works for psrq.*got method 'rq_vae'"):
        refit(method="rq_vae")
    with pytest.raises(InputError, match=r"prefix weight 0\.5, the refit 0: .*auto"):
        refit(prefix_weight=0.0)
    with pytest.raises(ArtifactError, match="no generation gen-none"):
        quantize(workspace, QuantizeOptions(align_to="gen-none"))
    # Vectors of another encoder, as its id says.
    write_catalogue(workspace, clustered(400, {"text": 13, "audio": 6}))
    with pytest.raises(InputError, match=r"of vectors-\w+, but `embed` was last run for vectors-"):
        refit()
    after = [path for path in workspace.root.rglob("*") if "embeddings" not in path.parts]
    assert sorted(after) == [path for path in before if "embeddings" not in path.parts]


def test_a_catalogue_with_no_track_in_common_is_refused():
    x = blobs(60, 4, 3)
    found = fit_quantizer(x, OPTIONS["vq"])
    old = old_family(found.book, np.arange(60), found.codes_NL)
    with pytest.raises(InputError, match="none of the refit's 60 tracks"):
        align(old, np.arange(100, 160), found.book, found.codes_NL)
