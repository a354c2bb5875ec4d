"""The last N listens at many (user, moment) queries, from the event log alone and without a loop.

A log holds one row a listen: when it happened and the first moment at which a reader may see it
(`visible`). The answer to (user, moment) is the last N, by (listened, event id), of the user's
rows with visible <= moment. Nearly every row is visible one microsecond after it happened; only
the others, the late ones, need a look of their own:

    p = rows of the user with listened < moment           (no later one can be visible)
    h = late rows among them with visible > moment        (hidden at that moment)
    h = 0: rows [p - N, p)
    h > 0: walk back from p, in steps that double, until N visible rows are found

p and h come from bisections over all queries at once. The log is read where it lies, so its
columns may be memory maps.

Shape suffixes: E events, sorted by (user, listened, event id); U users; T late events; Q queries;
Q1 Q + 1 offsets; W rows of all windows, one window after the other.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Windows:
    """One window a query: `rows_W[offsets_Q1[q]:offsets_Q1[q + 1]]`, newest last."""

    rows_W: np.ndarray
    """Positions in the log, int64."""
    offsets_Q1: np.ndarray
    """int64. An empty window: the user has no visible row, so is unknown at that moment."""

    @property
    def counts_Q(self) -> np.ndarray:
        return np.diff(self.offsets_Q1)


class EventWindows:
    """An index over a log; answers `last` and `seen_us` for any queries and any N."""

    def __init__(self, users_E: np.ndarray, listened_us_E: np.ndarray, visible_us_E: np.ndarray):
        """int64 columns of a log sorted by (user, listened, event id); times in microseconds.

        Raises ValueError where the log is not sorted or a row is visible before it has happened.
        """
        same_user_E = users_E[1:] == users_E[:-1]
        rising_E = (users_E[1:] > users_E[:-1]) | (
            same_user_E & (listened_us_E[1:] >= listened_us_E[:-1])
        )
        if not rising_E.all():
            row = int(np.argmin(rising_E)) + 1
            raise ValueError(f"the log must be sorted by user and time; row {row} is not in order")
        if (visible_us_E <= listened_us_E).any():
            row = int(np.argmax(visible_us_E <= listened_us_E))
            raise ValueError(
                f"a row must become visible after it has happened; row {row} is visible at "
                f"{visible_us_E[row]} us and happened at {listened_us_E[row]} us"
            )
        self._listened_us_E = listened_us_E
        self._visible_us_E = visible_us_E
        first_rows_U = np.flatnonzero(np.append(len(users_E) > 0, ~same_user_E))
        self._users_U = users_E[first_rows_U]
        self._bounds_U1 = np.append(first_rows_U, len(users_E)).astype(np.int64)

        late_T = np.flatnonzero(visible_us_E > listened_us_E + 1)
        self._late_listened_us_T = listened_us_E[late_T]
        visible_us_T = visible_us_E[late_T]
        order_T = np.lexsort((visible_us_T, users_E[late_T]))
        self._late_visible_us_T = visible_us_T[order_T]
        self._late_bounds_U1 = np.searchsorted(late_T, self._bounds_U1)

    def last(self, users_Q: np.ndarray, moments_us_Q: np.ndarray, length: int) -> Windows:
        """The windows of the last `length` visible listens. A window takes 8 bytes a row."""
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        begins_Q, ends_Q, hidden_Q = self._prefixes(users_Q, moments_us_Q)
        counts_Q = np.minimum(length, ends_Q - begins_Q - hidden_Q)
        offsets_Q1 = np.append(0, np.cumsum(counts_Q))
        rows_W = ragged(ends_Q - counts_Q, counts_Q)
        open_Q = np.flatnonzero((hidden_Q > 0) & (counts_Q > 0))
        width = 2 * length
        while len(open_Q):
            starts = np.maximum(begins_Q[open_Q], ends_Q[open_Q] - width)
            lengths = ends_Q[open_Q] - starts
            candidates = ragged(starts, lengths)
            visible = self._visible_us_E[candidates] <= np.repeat(moments_us_Q[open_Q], lengths)
            seen = np.append(0, np.cumsum(visible))  # visible rows before each candidate
            after = np.cumsum(lengths)
            found = seen[after] - seen[after - lengths]
            done = found >= counts_Q[open_Q]
            # Of a finished query, the visible candidates with fewer than N visible after them.
            later = np.repeat(seen[after], lengths) - seen[1:]
            kept = visible & (later < np.repeat(np.where(done, counts_Q[open_Q], 0), lengths))
            closed_Q = open_Q[done]
            rows_W[ragged(offsets_Q1[closed_Q], counts_Q[closed_Q])] = candidates[kept]
            open_Q = open_Q[~done]
            width *= 2
        return Windows(rows_W=rows_W, offsets_Q1=offsets_Q1)

    def seen_us(self, users_Q: np.ndarray, moments_us_Q: np.ndarray) -> np.ndarray:
        """Feast time of the answers: the largest visible_us <= moment; -1 for unknown users."""
        begins_Q, ends_Q, hidden_Q = self._prefixes(users_Q, moments_us_Q)
        seen_us_Q = np.full(len(users_Q), -1, dtype=np.int64)
        if len(self._late_visible_us_T):
            first_Q, visible_Q = self._late_visible(users_Q, moments_us_Q)
            some_Q = visible_Q > first_Q
            seen_us_Q[some_Q] = self._late_visible_us_T[visible_Q[some_Q] - 1]
        # The newest row that was not late: walk back over late ones, which are few in a row.
        rows_Q = ends_Q - 1
        open_Q = np.flatnonzero((rows_Q >= begins_Q) & (ends_Q - begins_Q > hidden_Q))
        while len(open_Q):
            rows = rows_Q[open_Q]
            on_time = self._visible_us_E[rows] == self._listened_us_E[rows] + 1
            settled = open_Q[on_time]
            times = self._visible_us_E[rows[on_time]]
            seen_us_Q[settled] = np.maximum(seen_us_Q[settled], times)
            rows_Q[open_Q] -= 1
            # An older row cannot be newer than what is known already.
            open_Q = open_Q[~on_time]
            open_Q = open_Q[rows_Q[open_Q] >= begins_Q[open_Q]]
            open_Q = open_Q[self._listened_us_E[rows_Q[open_Q]] >= seen_us_Q[open_Q]]
        return seen_us_Q

    def _prefixes(
        self, users_Q: np.ndarray, moments_us_Q: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """begins_Q, ends_Q of the user's rows with listened < moment; hidden_Q of them."""
        user_Q, known_Q = self._user_positions(users_Q)
        begins_Q = np.where(known_Q, self._bounds_U1[user_Q], 0)
        stops_Q = np.where(known_Q, self._bounds_U1[user_Q + 1], 0)
        ends_Q = count_below(self._listened_us_E, begins_Q, stops_Q, moments_us_Q)
        hidden_Q = np.zeros(len(users_Q), dtype=np.int64)
        if len(self._late_visible_us_T):
            first_Q, visible_Q = self._late_visible(users_Q, moments_us_Q)
            stops_Q = np.where(known_Q, self._late_bounds_U1[user_Q + 1], 0)
            happened_Q = count_below(self._late_listened_us_T, first_Q, stops_Q, moments_us_Q)
            hidden_Q = happened_Q - visible_Q  # visible rows have happened: a part of them
        return begins_Q, ends_Q, hidden_Q

    def _late_visible(
        self, users_Q: np.ndarray, moments_us_Q: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where each user's late rows begin, and where those with visible <= moment end."""
        user_Q, known_Q = self._user_positions(users_Q)
        first_Q = np.where(known_Q, self._late_bounds_U1[user_Q], 0)
        stops_Q = np.where(known_Q, self._late_bounds_U1[user_Q + 1], 0)
        return first_Q, count_below(self._late_visible_us_T, first_Q, stops_Q, moments_us_Q + 1)

    def _user_positions(self, users_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position of each user among the log's, and whether it is one of them."""
        if len(self._users_U) == 0:
            return np.zeros(len(users_Q), dtype=np.int64) - 1, np.zeros(len(users_Q), dtype=bool)
        user_Q = np.searchsorted(self._users_U, users_Q)
        user_Q = np.minimum(user_Q, len(self._users_U) - 1)
        return user_Q, self._users_U[user_Q] == users_Q


def count_below(
    values: np.ndarray, begins_Q: np.ndarray, ends_Q: np.ndarray, needles_Q: np.ndarray
) -> np.ndarray:
    """First position in [begin, end) whose value is not below the needle, else end; (Q,) int64.

    `values` rises within each [begin, end). All queries bisect together: log2(longest) rounds.
    """
    low_Q, high_Q = begins_Q.astype(np.int64), ends_Q.astype(np.int64)
    longest = int((high_Q - low_Q).max(initial=0))
    for _ in range(longest.bit_length()):
        middle_Q = (low_Q + high_Q) >> 1
        open_Q = low_Q < high_Q
        below_Q = open_Q & (values[np.where(open_Q, middle_Q, 0)] < needles_Q)
        low_Q = np.where(below_Q, middle_Q + 1, low_Q)
        high_Q = np.where(open_Q & ~below_Q, middle_Q, high_Q)
    return low_Q


def ragged(starts_Q: np.ndarray, lengths_Q: np.ndarray) -> np.ndarray:
    """start, start + 1, ... start + length - 1 of each query, one after the other; int64."""
    ends_Q = np.cumsum(lengths_Q)
    total = int(ends_Q[-1]) if len(ends_Q) else 0
    shift_Q = starts_Q - (ends_Q - lengths_Q)
    return np.repeat(shift_Q, lengths_Q) + np.arange(total, dtype=np.int64)
