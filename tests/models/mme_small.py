"""A planted world for tests of the study: listeners keep to a group of items, and so do vectors."""

import numpy as np

from models.mm_rq_vae import MmRqVaeOptions
from models.mme_runs import RunOptions
from models.mme_sid_training import MmeSidTraining
from models.mme_world import MmeWorld
from models.next_items import NextItems
from models.sasrec_training import SasRecOptions

GROUPS, ITEMS, USERS = 4, 48, 60


def small_world(name: str = "planted") -> MmeWorld:
    """Items of one group follow each other in a ring; text says the group, audio is noise."""
    random = np.random.default_rng(0)
    in_group = ITEMS // GROUPS
    sequences = []
    for user in range(USERS):
        start, length = random.integers(0, in_group), random.integers(4, 9)
        places = (start + np.arange(length)) % in_group
        sequences.append(1 + user % GROUPS * in_group + places)
    data = NextItems.from_sequences(sequences, track_ids=range(1, ITEMS + 1))
    centres = random.normal(size=(GROUPS, 12))
    text = centres[np.arange(ITEMS) // in_group] + 0.3 * random.normal(size=(ITEMS, 12))
    raw = {"text": text, "audio": random.normal(size=(ITEMS, 5))}
    padded = {
        family: np.vstack([np.zeros((1, table.shape[1])), table]).astype(np.float32)
        for family, table in raw.items()
    }
    padded["audio"][1:4] = 0  # tracks without audio
    return MmeWorld(name=name, next_items=data, raw=padded)


SMALL = RunOptions(
    hidden=16,
    layers=1,
    heads=2,
    training=MmeSidTraining(length=8, epochs=3, batch_size=16, learning_rate=1e-2),
    quantizer=MmRqVaeOptions(levels=2, codes=6, hidden=(16,), latent_dims=6, epochs=4),
    sasrec=SasRecOptions(width=8, layers=1, length=8, epochs=3, batch_size=16),
    paper_sasrec=SasRecOptions(
        loss="bce", width=8, layers=1, length=8, epochs=2, patience=1, batch_size=16
    ),
)
