"""A study's runs on a planted world: what a line holds, and that it follows from its parts."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from models.collapse import spectrum
from models.full_ranking import ranking_metrics
from models.mme_collaborative import Collaborative
from models.mme_run_file import append_runs
from models.mme_runs import Shared, world_variants
from models.mme_variants import (
    CONSISTENT,
    FULL,
    GIVEN,
    MSE,
    NO_FUSION,
    PAPER_SASREC,
    POPULAR,
    RANDOM_IDS,
    SASREC,
    only,
    variants_of,
)
from models.per_user import LARGEST, unpacked
from tests.models.mme_small import SMALL, small_world

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("mme") / "results.jsonl"
    assert len(list(append_runs(path, small_world(), SMALL, 0, CPU))) == 22
    return path


@pytest.fixture(scope="module")
def lines(results):
    read = [json.loads(line) for line in results.read_text().splitlines()]
    return {line["variant"]: line for line in read}


def test_every_variant_has_its_line(lines):
    names = [variant.name for variant in variants_of(("collaborative", "text", "audio"))]
    assert list(lines) == [SASREC, POPULAR, PAPER_SASREC, *names]
    for line in lines.values():
        assert (line["world"], line["seed"]) == ("planted", 0)
        ranks_V = unpacked(line["ranks"])
        assert len(ranks_V) == 60
        assert line["metrics"] == pytest.approx(ranking_metrics(ranks_V))


def test_sasrec_of_its_paper_is_trained_with_its_own_options(lines):
    of = Collaborative.trained(small_world().next_items, SMALL.paper_sasrec, CPU)
    np.testing.assert_array_equal(
        unpacked(lines[PAPER_SASREC]["ranks"]), np.minimum(of.ranks_V, LARGEST)
    )
    assert lines[PAPER_SASREC]["ranks"] != lines[SASREC]["ranks"]


def test_the_popular_list_is_ranked_by_training_counts_alone(lines):
    data = small_world().next_items
    test = data.held_out("test")
    ends = np.cumsum(test.lengths_V)
    expected = []
    for end, length, target in zip(ends, test.lengths_V, test.targets_V, strict=True):
        others = set(range(1, 49)) - set(test.rows_P[end - length : end].tolist()) - {int(target)}
        ahead = sum(data.counts_I[item] >= data.counts_I[target] for item in others)
        expected.append(1 + ahead)
    np.testing.assert_array_equal(unpacked(lines[POPULAR]["ranks"]), expected)


def test_tables_and_taus_are_there_where_they_exist(lines):
    alone = lines[only("collaborative")]
    assert "ids_tau" not in alone
    assert set(alone["collapse"]) == {"input", "matrix", "projected", "raw collaborative"}
    full = lines[FULL]
    assert set(full["collapse"]) == {"input", "matrix", "projected"} | {
        f"raw {family}" for family in ("collaborative", "text", "audio")
    }
    assert len(full["spectrum"]) == SMALL.hidden
    assert sum(full["spectrum"]) == pytest.approx(1, abs=0.01)
    for kind in ("codes_tau", "ids_tau"):
        for found in full[kind].values():
            tau_U = unpacked(found["per_user"])
            assert np.nanmean(tau_U) == pytest.approx(found["tau"], abs=1e-4)
            assert np.isnan(tau_U).sum() == found["left_out"]
    text = torch.from_numpy(small_world().raw["text"][1:])
    assert full["collapse"]["raw text"]["effective_rank"] == spectrum(text).effective_rank


def test_what_is_shared_is_the_same(lines):
    """Random embeddings have the full model's IDs; only where they begin is another."""
    assert lines[RANDOM_IDS]["codes_tau"] == lines[FULL]["codes_tau"]
    assert lines[CONSISTENT]["codes_tau"] == lines[FULL]["codes_tau"]
    assert lines[NO_FUSION]["codes_tau"] == lines[FULL]["codes_tau"]
    assert lines[NO_FUSION]["ranks"] != lines[FULL]["ranks"]
    assert lines[MSE]["codes_tau"] != lines[FULL]["codes_tau"]
    assert lines[RANDOM_IDS]["ids_tau"]["text"]["tau"] < lines[FULL]["ids_tau"]["text"]["tau"]


def test_a_planted_order_is_learned(lines):
    """The next item of the ring is one of 48, of which a group of 12 is likely."""
    assert lines[FULL]["metrics"]["ndcg@10"] > 1.5 * lines[POPULAR]["metrics"]["ndcg@10"]


def test_a_study_goes_on_where_it_was_cut_off(results, lines, tmp_path):
    """The line of the fourth variant is there in part: it and all after it are run again."""
    path = tmp_path / "results.jsonl"
    text = results.read_text().splitlines(keepends=True)
    path.write_text("".join(text[:5]) + text[5][:100])
    again = [line["variant"] for line in append_runs(path, small_world(), SMALL, 0, CPU)]
    assert again == list(lines)[5:]
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for line, expected in zip(found, lines.values(), strict=True):
        assert line | {"seconds": 0} == expected | {"seconds": 0}
    assert list(append_runs(path, small_world(), SMALL, 0, CPU)) == []


def test_a_row_without_training_listens_is_no_collaborative_embedding():
    world = small_world()
    shared = Shared(world, SMALL, 1, CPU)
    cold_I = world.next_items.counts_I == 0
    table_ID = shared.raw["collaborative"]
    assert not table_ID[cold_I].any()
    assert table_ID[~cold_I].any(1).all()


def test_sasrec_that_was_kept_is_the_one_that_was_trained(tmp_path, lines):
    world = small_world()
    trained = Collaborative.trained(world.next_items, SMALL.sasrec, CPU)
    trained.save(tmp_path / "kept.npz")
    kept = Collaborative.load(tmp_path / "kept.npz")
    path = tmp_path / "results.jsonl"
    names = {FULL, SASREC}
    found = append_runs(path, world, SMALL, 0, CPU, names=names, collaborative=kept)
    for line in found:
        assert line | {"seconds": 0} == lines[line["variant"]] | {"seconds": 0}
        names.remove(line["variant"])
    assert not names


def test_given_embeddings_stand_beside_ours():
    world = small_world()
    raw = {"collaborative_given": world.raw["text"], "text": world.raw["text"]}
    found = world_variants(dataclasses.replace(world, raw=raw))
    assert found[0].families == ("collaborative", "text")
    assert found[-1].families == (GIVEN, "text")
    assert all(GIVEN not in variant.families for variant in found[:-1])


def test_one_family_has_no_alignment():
    names = [variant.name for variant in variants_of(("collaborative",))]
    assert not any("align" in name for name in names)
    assert len(names) == len(set(names)) == 14
