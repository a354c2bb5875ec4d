"""How two machines' changes of a workspace come together, and what a look at its files finds."""

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.artifacts import REPLACED, Manifest, write_artifact
from feature_repo.workspace_files import Seen, look, merge, put_order, snapshot

NAMES = ["CURRENT", "m/manifest.json", "m/part", "m/sub/part", "t/a", "t/b", "x.db"]
SNAPSHOTS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from("123"))


@settings(max_examples=300, deadline=None)
@given(base=SNAPSHOTS, ours=SNAPSHOTS, theirs=SNAPSHOTS)
def test_merging_keeps_units_whole(base, ours, theirs):
    merged, overruled = merge(base, ours, theirs)
    groups = [{"CURRENT", "x.db"}, {"t/a"}, {"t/b"}]
    has_manifest = any("m/manifest.json" in side for side in (base, ours, theirs))
    in_m = {"m/manifest.json", "m/part", "m/sub/part"}
    groups += [in_m] if has_manifest else [{name} for name in sorted(in_m)]
    for group in groups:
        was, one, two, result = (
            {name: side[name] for name in group if name in side}
            for side in (base, ours, theirs, merged)
        )
        assert result == (one if two == was else two)
    lost = {name for names in overruled.values() for name in names}
    for name, sha in ours.items():
        if base.get(name) != sha and merged.get(name) != sha:
            assert name in lost
    assert merge(base, base, theirs)[0] == theirs
    assert merge(base, ours, base)[0] == ours


def test_a_look_sees_every_change_and_no_hidden_file(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a").write_text("1")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "t" / ".partial").write_text("x")
    (tmp_path / "online.db-shm").write_text("x")
    first = look(tmp_path, Seen())
    assert set(first.files) == {"t/a"}
    (tmp_path / "t" / "a").write_text("2")  # as long, within the clock's last tick
    second = look(tmp_path, first)
    assert snapshot(second) != snapshot(first)
    old = 10**18
    os.utime(tmp_path / "t" / "a", ns=(old, old))
    third = look(tmp_path, second)
    assert third.files["t/a"] == (1, old, second.files["t/a"][2])
    assert look(tmp_path, third).files == third.files


def test_a_replacement_that_was_cut_off_is_no_deletion(tmp_path):
    folder = tmp_path / "models" / "m-1"
    with write_artifact(folder, Manifest(kind="model", id="m-1")) as partial:
        (partial / "part").write_text("1")
    before = snapshot(look(tmp_path, Seen()))
    # Between the two renames of a replacement the earlier folder lies here.
    holder = tmp_path / "models" / f"{REPLACED}m-1.abc"
    holder.mkdir()
    folder.rename(holder / "m-1")
    assert snapshot(look(tmp_path, Seen())) == before
    assert folder.is_dir()


def test_a_file_is_put_in_place_before_what_names_it():
    names = ["releases/CURRENT", "models/m/manifest.json", "models/m/a.bin", "releases/r.json"]
    assert put_order(names) == [
        "models/m/a.bin",
        "releases/r.json",
        "models/m/manifest.json",
        "releases/CURRENT",
    ]
