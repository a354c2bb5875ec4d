"""The most-popular list: everybody is shown the tracks with the most listens. A floor for models.

Score of an item = its listens in the training part, so a target's rank is

    1 + |{i not in the history, i != target : count_i >= count_target}|

by the rule of `models.full_ranking`, counted without a score for each user and item: how many
items have that count or more, less those of the history.

Shapes: V users that have a target, P positions of their histories, I rows with the padding.
"""

import numpy as np

from models.full_ranking import ranking_metrics
from models.next_items import NextItems, Part


def most_popular_ranks(data: NextItems, part: Part) -> np.ndarray:
    """Ranks (V,) int64 of the part's targets."""
    held = data.held_out(part)
    rising_I = np.sort(data.counts_I[1:])
    count_V = data.counts_I[held.targets_V]
    at_least_V = data.items - np.searchsorted(rising_I, count_V, side="left")
    # Each item of a history once, however often it was heard.
    user_P = np.repeat(np.arange(len(held.users_V)), held.lengths_V)
    user_P, row_P = np.unique(np.stack([user_P, held.rows_P.astype(np.int64)]), axis=1)
    above_P = data.counts_I[row_P] >= count_V[user_P]
    masked_V = np.bincount(user_P[above_P], minlength=len(held.users_V))
    return at_least_V - masked_V  # the target itself is the 1 of the formula


def most_popular_metrics(data: NextItems, part: Part) -> dict[str, float]:
    """HR@k and nDCG@k of the list."""
    return ranking_metrics(most_popular_ranks(data, part))
