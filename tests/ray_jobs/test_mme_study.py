"""`crescendo mme-study` on a published world: data through Feast, verdicts, resuming."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from feature_repo.errors import InputError
from models.mme_variants import FULL, POPULAR
from ray_jobs.embed import read_embeddings
from ray_jobs.mme_study import MmeStudyOptions, _of_items, mme_study
from ray_jobs.next_item_set import read_next_items
from tests.models.mme_small import SMALL
from tests.ray_jobs.html_page import Page
from tests.ray_jobs.mme_sid_world import published_world
from tests.ray_jobs.sequence_world import LENGTH

OPTIONS = MmeStudyOptions(
    modalities=("text",),
    seeds=2,
    device="cpu",
    run=replace(SMALL, training=replace(SMALL.training, length=LENGTH, epochs=1)),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workspace, _ = published_world(tmp_path_factory.mktemp("mme-study"))
    return workspace, *mme_study(workspace, OPTIONS)


def test_every_variant_is_judged_on_both_seeds(made):
    _, answer, answers = made
    found = answers["workspace"]
    assert (found["families"], found["seeds"]) == (["collaborative", "text"], [0, 1])
    assert {FULL, POPULAR, "text only", "alignment off"} <= set(found["variants"])
    assert sum(answer["directions"].values()) == len(found["claims"])
    assert answer["runs"] == 2 * len(found["variants"])
    assert json.loads(Path(answer["json"]).read_text())["workspace"]["users"] == found["users"]
    assert "spectrum-workspace" in Page(answer["path"]).figures()


def test_a_second_run_trains_nothing_and_says_the_same(made):
    workspace, answer, answers = made
    results = next(workspace.reports.glob("mme-study-*.jsonl"))
    before = results.read_bytes()
    again, found = mme_study(workspace, OPTIONS)
    assert results.read_bytes() == before
    assert (again, found) == (answer, answers)


def test_raw_embeddings_stand_at_their_items(made):
    workspace = made[0]
    data = read_next_items(next(workspace.training_sets.glob("ni-*")))
    track_ids, vectors, _ = read_embeddings(workspace, "audio")
    table = _of_items(data, track_ids, vectors)
    of_track = dict(zip(track_ids.tolist(), vectors, strict=True))
    for row, track in enumerate(data.track_ids_I.tolist()):
        np.testing.assert_array_equal(table[row], of_track.get(track, np.zeros(vectors.shape[1])))
    assert 3 not in of_track


@pytest.mark.parametrize("modalities", [("collaborative", "text"), ("text", "text")])
def test_modalities_that_cannot_be_are_refused(modalities):
    with pytest.raises(InputError, match="distinct and without collaborative"):
        MmeStudyOptions(modalities=modalities)
