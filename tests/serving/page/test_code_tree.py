"""The tree of IDs against plain Python over random codes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import MISSING_CODE, ItemTable
from serving.page.code_tree import CodeTree

FAMILIES = ("text", "joint")


def random_items(seed, tracks, levels=3, codes=3):
    random = np.random.default_rng(seed)
    codes_IFL = random.integers(0, codes, (tracks, 2, levels))
    codes_IFL[random.random(tracks) < 0.2, 0] = MISSING_CODE
    track_ids_I = np.unique(random.integers(-(2**62), 2**62, tracks))
    return ItemTable(track_ids_I=track_ids_I, codes_IFL=codes_IFL)


worlds = st.builds(random_items, st.integers(0, 50), st.integers(1, 40))


def ids_of(items, place):
    return {
        int(track): tuple(codes.tolist())
        for track, codes in zip(items.track_ids_I, items.codes_IFL[:, place], strict=True)
        if codes[0] != MISSING_CODE
    }


@settings(max_examples=60, deadline=None)
@given(worlds, st.lists(st.integers(-1, 3), max_size=3).map(tuple))
def test_tracks_and_children_of_a_prefix(items, prefix):
    tree = CodeTree(items, FAMILIES)
    for place, family in enumerate(FAMILIES):
        ids = ids_of(items, place)
        under = {t for t, codes in ids.items() if codes[: len(prefix)] == prefix}
        tracks = tree.tracks(family, prefix).tolist()
        assert set(tracks) == under
        assert [ids[track] for track in tracks] == sorted(ids[track] for track in tracks)
        if len(prefix) < tree.levels:
            children = dict(tree.children(family, prefix))
            counts = Counter(ids[track][len(prefix)] for track in under)
            assert list(children) == sorted(counts)
            for code, own in children.items():
                assert set(own.tolist()) == {t for t in under if ids[t][len(prefix)] == code}


def shared(one, other):
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


@settings(max_examples=60, deadline=None)
@given(worlds, st.integers(1, 8))
def test_neighbours_share_the_most_codes(items, count):
    tree = CodeTree(items, FAMILIES)
    for place, family in enumerate(FAMILIES):
        ids = ids_of(items, place)
        for track in items.track_ids_I[:5].tolist():
            near = tree.neighbours(family, track, count)
            if track not in ids:
                assert near == []
                continue
            depths = [shared(ids[track], ids[other]) for other in ids if other != track]
            best = sorted((depth for depth in depths if depth), reverse=True)[:count]
            assert [depth for _, depth in near] == best
            assert all(shared(ids[track], ids[other]) == depth for other, depth in near)
            assert len({other for other, _ in near} | {track}) == len(near) + 1


def test_codes_of_a_track():
    codes_IFL = np.array([[[1, 2], [3, 4]], [[MISSING_CODE] * 2, [3, 3]]])
    items = ItemTable(track_ids_I=np.array([10, 20]), codes_IFL=codes_IFL)
    tree = CodeTree(items, FAMILIES)
    assert (tree.families, tree.levels) == (["text", "joint"], 2)
    assert tree.codes("joint", 10) == (3, 4)
    assert tree.codes("text", 20) == ()
    assert tree.codes("text", 15) == ()
    with pytest.raises(KeyError):
        tree.tracks("audio", ())
