"""Merging windows of listens: the newest N of a union, for many users at once. Pure numpy.

    window(A u B) = window(window(A) u window(B))

holds for any parts, in any order, however often: pushes, late events, concurrent writers and
nightly rebuilds end in the same row. It needs one rule for an event id that arrives twice with
different contents: the greater (time, track, action) stays. Keeping the greater one, an event
can leave a window only for good, so cutting early never changes the end.

Shape suffixes: U users, 4 the columns of a listen (`TRACK`, `TIME`, `ACTION`, `EVENT`: the order of
schema.SEQUENCE_COLUMNS), E listens of all users behind each other, K those of them that stay.
"""

from dataclasses import dataclass

import numpy as np

TRACK, TIME, ACTION, EVENT = range(4)
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Listens of U users: user u has the next counts_U[u] columns of listens_4E (int64).

    Inside a user ordered by (TIME, EVENT), newest last, no event id twice: what `windows_of`
    and `merge` return.
    """

    counts_U: np.ndarray
    listens_4E: np.ndarray

    def take(self, users: np.ndarray) -> "Windows":
        """The windows of these users (indices), in that order."""
        counts_U = self.counts_U[users]
        ends_U = np.cumsum(counts_U)
        first_U = (np.cumsum(self.counts_U) - self.counts_U)[users]
        total = int(ends_U[-1]) if len(ends_U) else 0
        places = np.repeat(first_U - (ends_U - counts_U), counts_U) + np.arange(total)
        return Windows(counts_U=counts_U, listens_4E=self.listens_4E[:, places])


def windows_of(user_E: np.ndarray, listens_4E: np.ndarray, users: int, length: int) -> Windows:
    """The newest `length` listens of each of `users` users, from listens in any order.

    user_E holds 0 to users - 1; listens_4E is (4, E) int64. An event id that comes twice counts
    once.
    """
    # A key of 16 bits sorts by counting: batches of up to 65,536 users sort by user for nothing.
    user_E = user_E.astype("u2" if users <= 1 << 16 else "i8", copy=False)
    if not _already_windows(user_E, listens_4E):
        order = np.lexsort((listens_4E[EVENT], user_E))
        user_E, listens_4E = user_E[order], listens_4E[:, order]
        again = _same_event(user_E, listens_4E[EVENT])
        if again.any():
            user_E, listens_4E = _each_once(user_E, listens_4E, again)
        order = np.lexsort((listens_4E[TIME], user_E))  # stable: ties stay in order of EVENT
        user_E, listens_4E = user_E[order], listens_4E[:, order]
    counts_U = np.bincount(user_E, minlength=users)
    if len(counts_U) and counts_U.max() > length:
        ends_U = np.cumsum(counts_U)
        newest = ends_U[user_E] - np.arange(len(user_E)) <= length
        listens_4E = listens_4E[:, newest]
        counts_U = np.minimum(counts_U, length)
    return Windows(counts_U=counts_U, listens_4E=listens_4E)


def merge(a: Windows, b: Windows, length: int) -> Windows:
    """The newest `length` listens of each user in either; user u of both is the same user."""
    users = len(a.counts_U)
    if len(b.counts_U) != users:
        raise ValueError(f"windows of {users} and of {len(b.counts_U)} users cannot be merged")
    user_E = np.concatenate([np.repeat(np.arange(users), w.counts_U) for w in (a, b)])
    return windows_of(user_E, np.concatenate([a.listens_4E, b.listens_4E], axis=1), users, length)


def _already_windows(user_E: np.ndarray, listens_4E: np.ndarray) -> bool:
    """Whether the order is right and no event id comes twice: then only the cut is left."""
    if len(user_E) < 2:
        return True
    same_user = user_E[1:] == user_E[:-1]
    time_E, event_E = listens_4E[TIME], listens_4E[EVENT]
    tie = time_E[1:] == time_E[:-1]
    later = (time_E[1:] > time_E[:-1]) | (tie & (event_E[1:] > event_E[:-1]))
    if not np.where(same_user, later, user_E[1:] > user_E[:-1]).all():
        return False
    if (event_E[1:] > event_E[:-1])[same_user].all():
        return True
    # Equal (user, event) have equal hashes, so unequal hashes are proof enough; and one array of
    # numbers sorts ten times as fast as two keys.
    hash_E = (event_E.view("u8") * _ODD) >> np.uint64(16) | user_E.astype("u8") << np.uint64(48)
    hash_E.sort()
    return not (hash_E[1:] == hash_E[:-1]).any()


def _same_event(user_E: np.ndarray, event_E: np.ndarray) -> np.ndarray:
    """Whether each listen is of the same user and event as the one before it."""
    return np.append(False, (event_E[1:] == event_E[:-1]) & (user_E[1:] == user_E[:-1]))


def _each_once(
    user_E: np.ndarray, listens_4E: np.ndarray, again: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The greatest (TIME, TRACK, ACTION) of each event; input and output by (user, EVENT)."""
    here = np.flatnonzero(again)
    if (listens_4E[:, here] != listens_4E[:, here - 1]).any():
        keys = (listens_4E[ACTION], listens_4E[TRACK], listens_4E[TIME], listens_4E[EVENT], user_E)
        order = np.lexsort(keys)
        user_E, listens_4E = user_E[order], listens_4E[:, order]
    last = np.append(~again[1:], True)
    return user_E[last], listens_4E[:, last]
