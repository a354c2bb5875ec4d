"""Releases that must not be served, each broken in another way.

Each function makes one live, breaks it and returns its id: `go_live` does that again, at once.
"""

import os
from pathlib import Path
from typing import Any

from feature_repo.artifacts import write_json
from serving.releases import CURRENT, make_release
from tests.serving.release_world import ReleaseWorld, change_warm_up, copied_model


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flipped_byte(world: ReleaseWorld) -> str:
    made = released_copy(world, "model-flipped")
    flip_byte(world.workspace.models / "model-flipped" / "model.safetensors")
    return made["release_id"]


def other_scores(world: ReleaseWorld) -> str:
    folder = world.workspace.models / copied_model(world.workspace, world.new, "model-drifted")
    other = world.workspace.models / world.numbers / "warm_up.safetensors"
    (folder / "warm_up.safetensors").write_bytes(other.read_bytes())
    change_warm_up(folder)
    return make_release(world.workspace, "model-drifted")["release_id"]


def wrong_generation(world: ReleaseWorld) -> str:
    return changed_release(world, "model-moved", generation_id="gen-aaaaaaaaaaaa")


def missing_service(world: ReleaseWorld) -> str:
    return changed_release(world, "model-alone", feature_service="ranker_gone")


def no_json(world: ReleaseWorld) -> str:
    made = released_copy(world, "model-cut")
    path = world.workspace.releases / f"{made['release_id']}.json"
    path.write_text('{"release_id": ')
    return made["release_id"]


def missing_release(world: ReleaseWorld) -> str:
    go_live(world, "release-gone")
    return "release-gone"


BREAKAGES = {
    flipped_byte: "model.safetensors was changed",
    other_scores: "when it was trained",
    wrong_generation: "names generation gen-aaaaaaaaaaaa",
    missing_service: "ranker_gone is not in the feature store",
    no_json: "is not a release",
    missing_release: "no release release-gone",
}
"""And what is said of it."""


def go_live(world: ReleaseWorld, release_id: str) -> None:
    """As `crescendo release` ends, without its checks."""
    partial = world.workspace.releases / ".partial"
    partial.write_text(release_id + "\n")
    os.replace(partial, world.workspace.releases / CURRENT)


def changed_release(world: ReleaseWorld, model_id: str, **changes: Any) -> str:
    made = released_copy(world, model_id)
    write_json(world.workspace.releases / f"{made['release_id']}.json", made | changes)
    return made["release_id"]


def released_copy(world: ReleaseWorld, model_id: str) -> dict[str, Any]:
    return make_release(world.workspace, copied_model(world.workspace, world.new, model_id))
