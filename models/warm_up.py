"""A trained model's scores on made-up requests: whoever serves it must get the same ones.

    warm_up = made_up_requests(track_ids_I, history_length=50, names=config.numbers)
    warm_up = warm_up.scored(model, lookup, history_length=50)
    save_file(warm_up.arrays(), folder / WARM_UP_FILE)   # read again by WarmUp.of(load_file(...))

The requests are drawn from the catalogue, not from the log: nobody's listens are in the file.

Shape suffixes: I tracks of the catalogue, H histories, C candidates of each, T listens of one
history, M listens of all histories, N numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from models.batch import ItemLookup, make_batch, track_rows
from models.number_rows import DAY_US, number_rows

WARM_UP_FILE = "warm_up.safetensors"
"""In the model's folder."""
CANDIDATES = 256
SEED = 0
MOMENT_US = 20_000 * DAY_US + DAY_US // 3
"""A morning in 2024: "now" of every made-up request."""
COUNTS_MEAN = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class WarmUp:
    """The same candidates for each of a few histories, and the scores of the trained weights."""

    candidates_C: np.ndarray
    """int64, known to the generation that the model was trained on."""
    listens_M: np.ndarray
    """int64: the histories' tracks, one history after the other, each oldest first."""
    ends_H: np.ndarray
    """int64: where each history ends in `listens_M`."""
    numbers_HCN: np.ndarray
    """float32, as `Batch.numbers_BN`; N is 0 for a model without numbers."""
    scores_HC: np.ndarray
    """float32 probabilities on the CPU; (H, 0) before `scored`."""

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "WarmUp":
        """From what `arrays` gave."""
        return cls(**arrays)

    def arrays(self) -> dict[str, np.ndarray]:
        return dict(vars(self))

    def histories(self) -> list[np.ndarray]:
        """The listens (T,) of each history."""
        return np.split(self.listens_M, self.ends_H[:-1])

    @torch.inference_mode()
    def scored(self, model: nn.Module, lookup: ItemLookup, history_length: int) -> "WarmUp":
        """With the scores of a model in evaluation mode that lies where the lookup lies."""
        scores_HC = np.empty((len(self.ends_H), len(self.candidates_C)), dtype=np.float32)
        for h, listens_T in enumerate(self.histories()):
            count = len(self.candidates_C)
            rows = track_rows(
                torch.from_numpy(self.candidates_C),
                torch.from_numpy(np.tile(listens_T, count)),
                torch.arange(count + 1) * len(listens_T),
                history_length=history_length,
                numbers_BN=torch.from_numpy(self.numbers_HCN[h]),
            )
            scores_HC[h] = torch.sigmoid(model(make_batch(rows, lookup))).cpu().numpy()
        return replace(self, scores_HC=scores_HC)


def made_up_requests(
    track_ids_I: np.ndarray, *, history_length: int, names: Sequence[str]
) -> WarmUp:
    """Not yet scored. The same for the same catalogue; `names` as `RankerConfig.numbers`.

    Histories are empty, of one listen, half full, full, and longer than the model looks back.
    """
    random = np.random.default_rng(SEED)
    lengths_H = np.array([0, 1, (history_length + 1) // 2, history_length, history_length + 3])
    candidates_C = random.choice(track_ids_I, min(CANDIDATES, len(track_ids_I)), replace=False)
    shape = len(lengths_H), len(candidates_C)
    rows = shape[0] * shape[1]
    # Counts of any size: a few of them 0, most of them small.
    counts = {name: random.geometric(1 / COUNTS_MEAN, rows) - 1 for name in names}
    numbers_BN = number_rows(
        names,
        counts,
        moments_us_B=np.full(rows, MOMENT_US),
        history_lengths_B=np.repeat(lengths_H, shape[1]),
        last_listens_us_B=MOMENT_US - random.integers(0, 30 * DAY_US, rows),
    )
    return WarmUp(
        candidates_C=np.sort(candidates_C),
        listens_M=random.choice(track_ids_I, int(lengths_H.sum())),
        ends_H=np.cumsum(lengths_H),
        numbers_HCN=numbers_BN.reshape(*shape, len(names)),
        scores_HC=np.empty((shape[0], 0), dtype=np.float32),
    )
