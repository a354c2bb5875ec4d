"""Releases: the check of a triple, going live, trying it on some users, going back."""

import json
from dataclasses import replace

import pytest

from feature_repo.artifacts import MANIFEST
from feature_repo.errors import ArtifactError, InputError
from feature_repo.store import open_store
from serving.ranker import ReleaseRanker
from serving.releases import (
    CANARY,
    CURRENT,
    SHADOW,
    Canary,
    live_release,
    make_release,
    promote,
    read_canary,
    rollback,
    shadow_release_id,
    withdraw,
)

GOLDEN_USERS = [5, 7, 18, 33]


@pytest.fixture
def workspace(world):
    return world.workspace


def test_release_goes_live_with_its_feature_service(workspace, world):
    made = make_release(workspace, world.new)
    live = live_release(workspace)
    assert live.release_id == made["release_id"]
    assert live.model_id == world.new
    service = open_store(workspace).get_feature_service(live.feature_service)
    assert {projection.name for projection in service.feature_view_projections} == {
        "user_sequence",
        "track_semantic_ids_gen_bbbbbbbbbbbb",
    }


def test_the_newest_model_is_released_unless_another_is_named(workspace, world):
    assert make_release(workspace)["model_id"] == world.plain


def test_a_release_that_cannot_be_read_names_the_command_that_replaces_it(world):
    """`rollback` reads it too, to learn what it replaced: the way out is another one."""
    workspace = world.workspace
    before = make_release(workspace, world.old)
    broken = make_release(workspace, world.new)
    path = workspace.releases / f"{broken['release_id']}.json"
    helps = f"newest of the others is {before['release_id']}.* release --model-id {world.old}`"
    path.write_text('{"release_id": ')
    for fails in (live_release, rollback):
        with pytest.raises(ArtifactError, match=f"is not a release .*{helps}"):
            fails(workspace)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"is missing; the {helps}"):
        rollback(workspace)
    make_release(workspace, world.old)
    assert live_release(workspace).release_id == before["release_id"]


def test_a_release_whose_file_was_cut_is_made_again(world):
    workspace = world.workspace
    made = make_release(workspace, world.old)
    path = workspace.releases / f"{made['release_id']}.json"
    path.write_text("")
    with pytest.raises(ArtifactError, match="run `crescendo release` to make one"):
        live_release(workspace)
    assert make_release(workspace, world.old)["release_id"] == made["release_id"]
    assert live_release(workspace).model_id == world.old


def test_making_it_twice_changes_nothing(workspace):
    first = make_release(workspace)
    again = make_release(workspace)
    assert (again["release_id"], again["replaces"]) == (first["release_id"], None)


def test_rollback_needs_a_release_before(workspace):
    with pytest.raises(ArtifactError, match="crescendo release"):
        rollback(workspace)
    make_release(workspace)
    with pytest.raises(InputError, match="nothing to go back to"):
        rollback(workspace)


def test_rollback_makes_the_earlier_release_live(workspace, world):
    first = make_release(workspace, world.old)
    make_release(workspace, world.new)
    assert rollback(workspace)["release_id"] == first["release_id"]
    assert live_release(workspace).release_id == first["release_id"]


def test_rollback_drops_the_canary(workspace, world):
    make_release(workspace, world.old)
    make_release(workspace, world.new)
    make_release(workspace, world.numbers, canary_share=0.5)
    make_release(workspace, world.plain, shadow=True)
    assert rollback(workspace)["model_id"] == world.old
    assert read_canary(workspace) is None
    assert shadow_release_id(workspace) is not None  # nobody is shown its scores


def test_a_canary_leaves_the_live_release_where_it_is(workspace, world):
    live = make_release(workspace, world.old)
    made = make_release(workspace, world.new, canary_share=0.25)
    assert live_release(workspace).release_id == live["release_id"]
    assert read_canary(workspace) == Canary(release_id=made["release_id"], share=0.25)
    assert open_store(workspace).get_feature_service(made["feature_service"])


def test_promotion_makes_the_canary_live_and_a_rollback_undoes_it(workspace, world):
    make_release(workspace, world.old)
    canary = make_release(workspace, world.new, canary_share=0.25)
    between = make_release(workspace, world.plain)
    promoted = promote(workspace)
    assert promoted["release_id"] == canary["release_id"]
    assert live_release(workspace).release_id == canary["release_id"]
    assert read_canary(workspace) is None
    assert rollback(workspace)["release_id"] == between["release_id"]
    with pytest.raises(InputError, match=r"no canary .*--canary SHARE"):
        promote(workspace)


def test_a_release_has_one_place(workspace, world):
    make_release(workspace, world.old)
    made = make_release(workspace, world.new, shadow=True)
    assert shadow_release_id(workspace) == made["release_id"]
    make_release(workspace, world.new, canary_share=0.1)
    assert shadow_release_id(workspace) is None
    make_release(workspace, world.new, shadow=True)
    assert read_canary(workspace) is None
    make_release(workspace, world.new)
    assert shadow_release_id(workspace) is None
    with pytest.raises(InputError, match="cannot be its own canary or shadow"):
        make_release(workspace, world.new, shadow=True)


def test_canary_and_shadow_need_a_live_release(workspace, world):
    for beside in ({"canary_share": 0.5}, {"shadow": True}):
        with pytest.raises(ArtifactError, match="no release is live"):
            make_release(workspace, world.new, **beside)
    assert not list(workspace.releases.glob("*"))


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan"), "half"])
def test_a_share_that_is_none_is_refused(workspace, world, share):
    make_release(workspace, world.old)
    with pytest.raises(InputError, match=f"canary share is {share!r}; expected a share"):
        make_release(workspace, world.new, canary_share=share)
    with pytest.raises(InputError, match="expected one of them"):
        make_release(workspace, world.new, canary_share=0.5, shadow=True)
    assert not (workspace.releases / CANARY).exists()
    assert not (workspace.releases / SHADOW).exists()


def test_withdrawing_drops_canary_and_shadow_readable_or_not(workspace, world):
    live = make_release(workspace, world.old)
    with pytest.raises(InputError, match="none to withdraw"):
        withdraw(workspace)
    make_release(workspace, world.new, shadow=True)
    assert withdraw(workspace) == {"withdrawn": ["shadow"]}
    (workspace.releases / CANARY).write_text("?")
    (workspace.releases / SHADOW).write_text("?")
    with pytest.raises(ArtifactError, match="crescendo withdraw"):
        promote(workspace)
    assert withdraw(workspace) == {"withdrawn": ["canary", "shadow"]}
    assert live_release(workspace).release_id == live["release_id"]


def test_an_unreadable_canary_does_not_keep_a_release_from_going_live(workspace, world):
    make_release(workspace, world.old)
    (workspace.releases / CANARY).write_text("?")
    made = make_release(workspace, world.new)
    assert live_release(workspace).release_id == made["release_id"]


def test_the_same_users_get_the_canary_in_every_process(workspace):
    canary = Canary(release_id="release-0123456789ab", share=0.1)
    assert [user for user in range(50) if canary.takes(user)] == GOLDEN_USERS
    assert not Canary(release_id="release-0123456789ab", share=1e-9).takes(7)
    everybody = Canary(release_id="release-0123456789ab", share=1.0)
    assert all(everybody.takes(user) for user in (-(2**63), -1, 0, 2**63 - 1))


def test_a_share_of_the_users_is_that_share_and_other_users_in_the_next_canary():
    users = range(20_000)
    for share in (0.01, 0.3, 0.9):
        taken = sum(Canary(release_id="release-a", share=share).takes(user) for user in users)
        spread = (len(users) * share * (1 - share)) ** 0.5
        assert abs(taken - len(users) * share) < 4 * spread
    first, second = (Canary(release_id=name, share=0.1) for name in ("release-a", "release-b"))
    both = sum(first.takes(user) and second.takes(user) for user in users)
    assert 140 < both < 260  # a tenth of a tenth


def test_a_model_trained_again_is_not_the_released_one(workspace):
    make_release(workspace)
    live = replace(live_release(workspace), model_sha256="0" * 64)
    with pytest.raises(ArtifactError, match="was trained again since release"):
        ReleaseRanker(workspace, live)


def test_a_feature_service_of_other_features_is_refused(workspace):
    make_release(workspace)
    live = live_release(workspace)
    with pytest.raises(ArtifactError, match=r"'track_semantic_ids_gen_bbbbbbbbbbbb:audio_sid'"):
        ReleaseRanker(workspace, replace(live, feature_service="user_taste"))
    with pytest.raises(ArtifactError, match="ranker_gone is not in the feature store"):
        ReleaseRanker(workspace, replace(live, feature_service="ranker_gone"))


def test_a_model_of_other_ids_is_refused(workspace, world):
    path = workspace.models / world.new / MANIFEST
    original = path.read_text()
    manifest = json.loads(original)
    manifest["options"]["ranker"]["levels"] = 4
    path.write_text(json.dumps(manifest))
    try:
        with pytest.raises(ArtifactError, match=r"levels=4.*has 2.*crescendo train"):
            make_release(workspace, world.new)
    finally:
        path.write_text(original)
    assert not (workspace.releases / CURRENT).exists()
