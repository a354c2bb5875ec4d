"""Packed rows of one view to columns or to values, whatever fields they were packed from.

Rows say by a fingerprint which fields they hold. Almost always those are the view's own. A row
that was packed before a field was added reads as null in that field; a field that the view no
longer has is skipped; a field that changed its type is an error.

Shape suffixes: N entities.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from feast import RepoConfig

from feature_repo.errors import ArtifactError, InputError
from feature_repo.stores.packed_columns import Column, Kind, column_from_arrow, null_column
from feature_repo.stores.packed_layout import OtherFieldsError, fingerprints
from feature_repo.stores.packed_row import RowCodec
from feature_repo.stores.packed_view import PackedView

FEW_ROWS = 16
"""Rows that are read one by one: from some twenty on columns are the faster way."""


class Codecs:
    """Codecs of rows that were packed from other fields than their view has now."""

    def __init__(self, load: Callable[[RepoConfig, PackedView], list[str]]) -> None:
        self._load = load
        self._known: dict[tuple[str, int], RowCodec] = {}

    def find(self, config: RepoConfig, view: PackedView, word: int) -> RowCodec:
        """The codec of rows with this fingerprint; asks the store once for those it knows."""
        if word == view.codec.layout.word:
            return view.codec
        if (view.tag, word) not in self._known:
            for text in self._load(config, view):
                codec = RowCodec(json.loads(text))
                self._known[view.tag, codec.layout.word] = codec
        try:
            return self._known[view.tag, word]
        except KeyError:
            raise ArtifactError(
                f"view {view.name} has a row of unknown fields (fingerprint "
                f"{word & 0xFFFFFFFFFFFFFFFF:016x}); drop it from the online store and run "
                "`crescendo materialize` again"
            ) from None


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadRows:
    """Columns of N entities; found_N says which have a row; times in microseconds, 0 if not."""

    columns: dict[str, Column]
    found_N: np.ndarray
    event_us_N: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadValues:
    """The same as Python values, feature by feature: as `Column.stored_values` gives them."""

    kinds: Mapping[str, Kind]
    values: Mapping[str, Sequence[Any]]
    found: Sequence[bool]
    event_us: Sequence[int]


def read_values(
    config: RepoConfig,
    view: PackedView,
    features: Sequence[str],
    rows: list[bytes | None],
    codecs: Codecs,
) -> ReadValues:
    """`read_rows` as Python values, by the way that is the faster one for so many rows."""
    if len(rows) <= FEW_ROWS:
        _check(view, features)
        try:
            return _few_rows(view, features, rows)
        except OtherFieldsError:
            pass  # rare: columns of all field lists, below
    read = read_rows(config, view, features, rows, codecs)
    return ReadValues(
        kinds=view.codec.kinds,
        values={name: column.stored_values() for name, column in read.columns.items()},
        found=read.found_N.tolist(),
        event_us=read.event_us_N.tolist(),
    )


def _few_rows(view: PackedView, features: Sequence[str], rows: list[bytes | None]) -> ReadValues:
    one, nulls = view.one_row, [None] * len(features)
    by_row = [nulls if row is None else one.values(row, features) for row in rows]
    return ReadValues(
        kinds=view.codec.kinds,
        values={name: [values[n] for values in by_row] for n, name in enumerate(features)},
        found=[row is not None for row in rows],
        event_us=[0 if row is None else one.event_us(row) for row in rows],
    )


def _check(view: PackedView, features: Sequence[str]) -> None:
    for name in features:
        if name not in view.codec.kinds:
            raise InputError(
                f"view {view.name} has no feature {name!r}; it has {list(view.codec.kinds)}"
            )


def read_rows(
    config: RepoConfig,
    view: PackedView,
    features: Sequence[str],
    rows: list[bytes | None],
    codecs: Codecs,
) -> ReadRows:
    """Features of N entities from their packed rows, None for an entity without one.

    Raises InputError for a feature that the view does not have, ArtifactError for rows that
    cannot be read.
    """
    _check(view, features)
    present = cast(list[bytes], rows)
    try:
        joined = b"".join(present)
    except TypeError:  # some are None: cheaper to find out so than to look at each
        present = [row for row in rows if row is not None]
        joined = b"".join(present)
    if not present:
        columns = {name: null_column(view.codec.kinds[name], len(rows)) for name in features}
        none = np.zeros(len(rows), dtype="i8")
        return ReadRows(columns=columns, found_N=none.astype(bool), event_us_N=none)
    try:
        unpacked = view.codec.unpack(present, joined)
        columns = {name: unpacked.column(name) for name in features}
        event_us = unpacked.event_us()
    except OtherFieldsError:
        columns, event_us = _mixed(config, view, features, present, codecs)
    if len(present) == len(rows):
        return ReadRows(columns=columns, found_N=np.ones(len(rows), bool), event_us_N=event_us)
    found_N = np.fromiter((row is not None for row in rows), dtype=bool, count=len(rows))
    event_us_N = np.zeros(len(rows), dtype="i8")
    event_us_N[found_N] = event_us
    columns = {name: column.spread(found_N) for name, column in columns.items()}
    return ReadRows(columns=columns, found_N=found_N, event_us_N=event_us_N)


def _mixed(
    config: RepoConfig,
    view: PackedView,
    features: Sequence[str],
    rows: list[bytes],
    codecs: Codecs,
) -> tuple[dict[str, Column], np.ndarray]:
    """Rows of several field lists: each group by its own codec, then in the given order."""
    word_N = fingerprints(rows)
    groups, parts, times = [], [], []
    for word in np.unique(word_N).tolist():
        codec = codecs.find(config, view, word)
        group = np.flatnonzero(word_N == word)
        held = [name for name in features if name in codec.kinds]
        for name in held:
            if codec.kinds[name] is not view.codec.kinds[name]:
                raise ArtifactError(
                    f"view {view.name} has rows with {name} as {codec.kinds[name].name}, but the "
                    f"view says {view.codec.kinds[name].name}; drop it from the online store and "
                    "run `crescendo materialize` again"
                )
        unpacked = codec.unpack([rows[n] for n in group.tolist()])
        columns = {name: unpacked.column(name) for name in held}
        for name in features:
            if name not in columns:
                columns[name] = null_column(view.codec.kinds[name], len(group))
        groups.append(group)
        parts.append(columns)
        times.append(unpacked.event_us())
    back = pa.array(np.argsort(np.concatenate(groups)))
    merged = {}
    for name in features:
        joined = pa.concat_arrays([columns[name].to_arrow() for columns in parts])
        merged[name] = column_from_arrow(view.codec.kinds[name], joined.take(back))
    return merged, np.concatenate(times)[back.to_numpy()]
