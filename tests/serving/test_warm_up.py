"""A release gives the scores of its training again, or is refused."""

import logging

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from feature_repo.errors import ArtifactError
from models.batch import ItemLookup, ItemTable
from models.warm_up import WARM_UP_FILE
from serving.fast_scores import FastScores
from serving.ranker import Catalogue, ReleaseRanker
from serving.releases import live_release, make_release
from serving.score_tables import ScoreTables
from serving.warm_up import check_warm_up
from tests.serving.release_world import change_warm_up, copied_model, rewrite_manifest
from tests.trained import TRACKS


def released(world, model_id) -> ReleaseRanker:
    make_release(world.workspace, model_id)
    return ReleaseRanker(world.workspace, live_release(world.workspace))


@pytest.mark.parametrize("model", ["old", "new", "numbers", "plain"])
def test_a_release_gives_the_recorded_scores_again(world, model, caplog):
    ranker = released(world, getattr(world, model))
    with caplog.at_level(logging.WARNING):
        check_warm_up(world.workspace, ranker)
    assert not caplog.records


@pytest.mark.parametrize("model", ["new", "numbers", "plain"])
@pytest.mark.parametrize(("change", "found"), [(3e-4, "."), (-3e-4, "."), (np.nan, "nan")])
def test_another_score_is_refused(world, model, change, found):
    model_id = copied_model(world.workspace, getattr(world, model), "model-otherscores")
    folder = world.workspace.models / model_id
    recorded = load_file(folder / WARM_UP_FILE)
    scores_HC = recorded["scores_HC"].copy()
    scores_HC[2, 5] += change
    change_warm_up(folder, scores_HC=scores_HC)
    track = recorded["candidates_C"][5]
    with pytest.raises(ArtifactError, match=rf"scores track {track} after 5 listens .*{found}"):
        check_warm_up(world.workspace, released(world, model_id))


def test_other_codes_in_the_online_store_are_seen(world):
    ranker = released(world, world.new)
    items = ranker.items
    moved = ItemTable(track_ids_I=items.track_ids_I, codes_IFL=np.roll(items.codes_IFL, 1, axis=0))
    vocabulary = ranker._vocabulary
    lookup = ItemLookup.of(moved, vocabulary, torch.device("cpu"))
    fast = FastScores(ScoreTables.of(ranker.model, ranker.config, lookup))
    ranker.catalogue = Catalogue(items=moved, lookup=lookup, fast=fast, numbers=None)
    with pytest.raises(ArtifactError, match="crescendo publish --generation gen-bbbbbbbbbbbb"):
        check_warm_up(world.workspace, ranker)


def test_a_model_of_before_is_served_with_a_warning(world, caplog):
    model_id = copied_model(world.workspace, world.new, "model-beforethis")
    folder = world.workspace.models / model_id
    (folder / WARM_UP_FILE).unlink()
    files = ("model.safetensors", "vocabulary.safetensors")
    rewrite_manifest(folder, files=dict.fromkeys(files, ""), code_version="0.1.0")
    check_warm_up(world.workspace, released(world, model_id))
    assert "is served unchecked: its model model-beforethis was trained by" in caplog.text


def test_a_track_that_is_not_online_is_left_out_with_a_warning(world, caplog):
    model_id = copied_model(world.workspace, world.new, "model-lacking")
    folder = world.workspace.models / model_id
    recorded = load_file(folder / WARM_UP_FILE)
    candidates_C, listens_M = recorded["candidates_C"].copy(), recorded["listens_M"].copy()
    candidates_C[3] = listens_M[-1] = TRACKS + 1  # of the last history
    change_warm_up(folder, candidates_C=candidates_C, listens_M=listens_M)
    ranker = released(world, model_id)
    check_warm_up(world.workspace, ranker)
    assert "is checked in part" in caplog.text
    scores_HC = recorded["scores_HC"].copy()
    scores_HC[-1] += 1
    scores_HC[:, 3] += 1
    change_warm_up(folder, scores_HC=scores_HC)
    check_warm_up(world.workspace, ranker)
    scores_HC[0, 4] += 1
    change_warm_up(folder, scores_HC=scores_HC)
    with pytest.raises(ArtifactError, match="after 0 listens"):
        check_warm_up(world.workspace, ranker)
