"""Packed online rows in Redis: one string value an entity and view. The production store.

    online_store:
      type: feature_repo.stores.packed_redis.PackedRedisOnlineStore
      connection_string: "redis.example:6379,db=0,password=..."

A key is Feast's serialized entity key, `/` and the view's tag; `packed-view:<tag>` is a hash of
the view's name and of the field lists that its rows were packed from. A read is one round trip
for all views: MGETs that are sent at once, their keys written out by numpy (those of a view differ
in eight bytes) instead of key by key. Each row is whole; two rows of one read may be of different
moments. Writes are scripts, in Redis one step each: no writer comes between the look and the write.

A lost connection is made again, and the command sent again, for up to `retry_s` seconds: every
write may be repeated without harm. Then StoreUnavailableError names the address.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal

import numpy as np
from feast import RepoConfig
from feast.repo_config import FeastConfigBaseModel
from pydantic import Field

from feature_repo.errors import InputError, StoreUnavailableError
from feature_repo.stores.packed_store import (
    Change,
    PackedOnlineStore,
)
from feature_repo.stores.packed_view import Keys, KeyTemplate, PackedView
from feature_repo.stores.redis_calls import RedisCalls, Script

MGET_KEYS = 128
"""Keys of one MGET. A read of more is several, sent at once: Redis answers the next while the
last answer is parsed, which halves the time of a thousand keys; and no read holds it up."""
SCRIPT_ROWS = 256
"""Rows of one script, which runs for well under a millisecond."""
FILL_ROWS = 64
"""New rows from which on one question more, whether they are new, is worth it."""
SCAN_KEYS = 2000
CHANGE_ATTEMPTS = 1000
"""Each failed one means that another writer got through, so this many mean a defect."""

# KEYS[1] is the view's hash, then the rows' keys. ARGV: the view's name, its fields, then the
# rows. Times are compared as four whole numbers: strings compare by locale, and a Lua number
# has 53 bits.
PUT_NOT_OLDER = Script("""
redis.call('HSET', KEYS[1], 'name', ARGV[1], ARGV[2], '')
for i = 2, #KEYS do
  local row = ARGV[i + 1]
  local now = redis.call('GETRANGE', KEYS[i], 8, 23)
  local older = false
  if #now == 16 then
    local a = {struct.unpack('>I4I4I4I4', now)}
    local b = {struct.unpack('>I4I4I4I4', row, 9)}
    for j = 1, 4 do
      if a[j] ~= b[j] then
        older = b[j] < a[j]
        break
      end
    end
  end
  if not older then redis.call('SET', KEYS[i], row) end
end
return #KEYS - 1
""")

PUT = Script("""
redis.call('HSET', KEYS[1], 'name', ARGV[1], ARGV[2], '')
for i = 2, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 1]) end
return #KEYS - 1
""")

# ARGV after the fields: for each row what its writer read ('' for nothing), and what it writes.
SWAP = Script("""
redis.call('HSET', KEYS[1], 'name', ARGV[1], ARGV[2], '')
local swapped = {}
for i = 2, #KEYS do
  swapped[i - 1] = 0
  if (redis.call('GET', KEYS[i]) or '') == ARGV[2 * i - 1] then
    redis.call('SET', KEYS[i], ARGV[2 * i])
    swapped[i - 1] = 1
  end
end
return swapped
""")


class PackedRedisOnlineStoreConfig(FeastConfigBaseModel):
    """`online_store` of feature_store.yaml."""

    type: Literal["feature_repo.stores.packed_redis.PackedRedisOnlineStore"] = (
        "feature_repo.stores.packed_redis.PackedRedisOnlineStore"
    )
    connection_string: str = "localhost:6379"
    """host:port, then redis-py's settings: `host:6379,db=0,username=...,password=...,ssl=true`."""
    timeout_s: float = Field(default=2.0, gt=0)
    """Longest wait for a connection, and for each answer."""
    retry_s: float = Field(default=3.0, ge=0)
    """How long a command that lost its connection is tried again."""


class PackedRedisOnlineStore(PackedOnlineStore):
    """See the module's docstring; rows: packed_layout; semantics: packed_store."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: RedisCalls | None = None
        self._templates: dict[tuple[str, str], KeyTemplate] = {}

    def _fetch(
        self, config: RepoConfig, asked: Sequence[tuple[PackedView, Keys]]
    ) -> list[list[bytes | None]]:
        parts: list[tuple[bytes, int]] = []
        for view, keys in asked:
            parts += self._wire_parts(view, keys)
        rows = self._connected(config).mget(parts) if parts else []
        answers, end = [], 0
        for _, keys in asked:
            answers.append(rows[end : end + len(keys)])
            end += len(keys)
        return answers

    def _put(
        self, config: RepoConfig, view: PackedView, keys: Keys, rows: list[bytes], replace: bool
    ) -> None:
        names = _row_keys(view, keys)
        left = [n for n, stored in enumerate(self._fill(config, view, names, rows)) if not stored]
        if len(left) < len(names):
            names, rows = [names[n] for n in left], [rows[n] for n in left]
        self._connected(config).scripts(
            PUT if replace else PUT_NOT_OLDER,
            (
                [len(part) + 1, _directory(view), *part, *_about(view), *rows[start:end]]
                for start, end, part in _parts(names)
            ),
        )

    def _fill(
        self, config: RepoConfig, view: PackedView, names: list[bytes], rows: list[bytes]
    ) -> list[bool]:
        """Stores rows where there is nothing yet, a part at a time; which of them it stored.

        MSETNX stores all rows of a part, or none where any of its keys has a value by then, in a
        quarter of a script's time: a script copies every value into Lua and out again.
        """
        if len(names) < FILL_ROWS:
            return [False] * len(names)
        calls = self._connected(config)
        name, fields = _about(view)
        calls.execute(b"HSET", _directory(view), b"name", name, fields, b"")
        stored: list[bool] = []
        for start, end, part in _parts(names):
            # Asked first: rows that are not taken would be sent for nothing.
            free = calls.execute(b"EXISTS", *part) == 0
            pairs = chain.from_iterable(zip(part, rows[start:end], strict=True))
            stored += [free and calls.execute(b"MSETNX", *pairs) == 1] * len(part)
        return stored

    def change_rows(self, config: RepoConfig, view: PackedView, keys: Keys, change: Change) -> None:
        names = _row_keys(view, keys)
        calls = self._connected(config)
        todo = np.arange(len(names))
        for attempt in range(CHANGE_ATTEMPTS):
            (old,) = self._fetch(config, [(view, _pick(keys, todo))])
            new = change(todo, old)
            changed = [n for n, row in enumerate(new) if row != old[n]]
            fresh = [n for n in changed if old[n] is None]
            filled = self._fill(
                config, view, [names[todo[n]] for n in fresh], [new[n] for n in fresh]
            )
            gone = {n for n, stored in zip(fresh, filled, strict=True) if stored}
            changed = [n for n in changed if n not in gone]
            arguments = []
            for start in range(0, len(changed), SCRIPT_ROWS):
                part = changed[start : start + SCRIPT_ROWS]
                both = [value for n in part for value in (old[n] or b"", new[n])]
                part_names = [names[todo[n]] for n in part]
                arguments.append(
                    [len(part) + 1, _directory(view), *part_names, *_about(view), *both]
                )
            swapped = [flag for answer in calls.scripts(SWAP, arguments) for flag in answer]
            todo = todo[[n for n, flag in zip(changed, swapped, strict=True) if not flag]]
            if not len(todo):
                return
            if attempt:
                calls.wait(random.random() * 0.001 * min(attempt, 20))
        raise StoreUnavailableError(
            f"online store {calls.address}: {len(todo)} rows of {view.name} were changed by "
            f"others {CHANGE_ATTEMPTS} times while this writer merged into them"
        )

    def _delete(self, config: RepoConfig, view: PackedView, keys: Keys) -> int:
        return self._connected(config).delete(_row_keys(view, keys))

    def _keys(self, config: RepoConfig, view: PackedView) -> Iterator[Keys]:
        suffix = _suffix(view)
        for names in self._connected(config).scan(b"*" + suffix, SCAN_KEYS):
            keys = [name[: -len(suffix)] for name in names]
            yield keys if view.template is None else view.template.ids(keys)

    def _create(self, config: RepoConfig, view: PackedView) -> None:
        calls = self._connected(config)
        name = f"{view.project}/{view.name}".encode()
        known = calls.execute(b"HGET", _directory(view), b"name")
        if known not in (None, name):
            raise InputError(
                f"views {known.decode()} and {name.decode()} have the same tag {view.tag} in "
                f"{calls.address}; rename one"
            )
        calls.execute(
            b"HSET", _directory(view), b"name", name, view.codec.layout.text.encode(), b""
        )

    def _drop(self, config: RepoConfig, view: PackedView) -> None:
        suffix = _suffix(view)
        calls = self._connected(config)
        for names in calls.scan(b"*" + suffix, SCAN_KEYS):
            calls.delete(names)
        calls.delete([_directory(view)])

    def _load_fields(self, config: RepoConfig, view: PackedView) -> list[str]:
        found = self._connected(config).execute(b"HKEYS", _directory(view))
        return [text.decode() for text in found if text != b"name"]

    def _connected(self, config: RepoConfig) -> RedisCalls:
        settings = config.online_store
        if self._calls is None:
            self._calls = RedisCalls(
                settings.connection_string, settings.timeout_s, settings.retry_s
            )
        return self._calls

    def _wire_parts(self, view: PackedView, keys: Keys) -> list[tuple[bytes, int]]:
        """Keys as MGETs take them on the wire ($length, the key, each ended by CR LF), and how
        many there are in each."""
        suffix, parts = _suffix(view), range(0, len(keys), MGET_KEYS)
        if not isinstance(keys, np.ndarray):
            wire = [b"$%d\r\n%b%b\r\n" % (len(k) + len(suffix), k, suffix) for k in keys]
            cut = [wire[start : start + MGET_KEYS] for start in parts]
            return [(b"".join(part), len(part)) for part in cut]
        (join_key,) = view.join_keys
        known = self._templates.get((join_key, view.tag))
        if known is None:
            size = view.int64_template().key_bytes + len(suffix)
            known = KeyTemplate(join_key, before=b"$%d\r\n" % size, after=suffix + b"\r\n")
            self._templates[join_key, view.tag] = known
        keys_NB = known.matrix(keys)
        matrices = [keys_NB[start : start + MGET_KEYS] for start in parts]
        return [(part.tobytes(), len(part)) for part in matrices]


def _suffix(view: PackedView) -> bytes:
    return b"/" + view.tag.encode()


def _directory(view: PackedView) -> bytes:
    return b"packed-view:" + view.tag.encode()


def _about(view: PackedView) -> tuple[bytes, bytes]:
    return f"{view.project}/{view.name}".encode(), view.codec.layout.text.encode()


def _row_keys(view: PackedView, keys: Keys) -> list[bytes]:
    if isinstance(keys, np.ndarray):
        keys = view.int64_template().keys(keys)
    suffix = _suffix(view)
    return [key + suffix for key in keys]


def _pick(keys: Keys, which: np.ndarray) -> Keys:
    return keys[which] if isinstance(keys, np.ndarray) else [keys[n] for n in which.tolist()]


def _parts(names: list[bytes]) -> Iterator[tuple[int, int, list[bytes]]]:
    for start in range(0, len(names), SCRIPT_ROWS):
        part = names[start : start + SCRIPT_ROWS]
        yield start, start + len(part), part
