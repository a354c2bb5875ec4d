"""Tiny rankers and random batches for them: an empty history, missing codes, every length."""

import torch

from models.batch import MISSING_CODE, Batch
from models.ranker_config import RankerConfig

B, T, F, L, K, D = 6, 5, 3, 2, 4, 8
NUMBERS = ("user_plays_7d", "hour_sin", "log_since_listen")


def config(model: str, **changes) -> RankerConfig:
    settings = {
        "model": model,
        "id_rows": 10,
        "families": ("text", "audio", "joint"),
        "levels": L,
        "codes": K,
        "history_length": T,
        "embedding_width": D,
        "attention_hidden": 7,
        "tower_hidden": (9, 5),
    }
    return RankerConfig(**(settings | changes))


def random_batch(seed: int = 0, numbers: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def ints(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    lengths = torch.tensor([0, 1, 2, 3, 4, 5])
    mask_BT = (torch.arange(T) < lengths[:, None]).float()
    history_codes = ints(K, B, T, F, L)
    history_codes[mask_BT == 0] = MISSING_CODE
    history_codes[5, 0, 1] = MISSING_CODE  # a listened track without audio
    target_codes = ints(K, B, F, L)
    target_codes[2] = MISSING_CODE  # a candidate without any ID
    batch = {
        "target_ids_B": ints(9, B) + 1,
        "target_codes_BFL": target_codes,
        "history_ids_BT": torch.where(mask_BT > 0, ints(9, B, T) + 1, 0),
        "history_codes_BTFL": history_codes,
        "history_mask_BT": mask_BT,
    }
    if numbers:
        batch["numbers_BN"] = torch.rand(B, len(NUMBERS), generator=generator) * 5
        batch["numbers_BN"][0, 2] = torch.nan  # the empty history has no listen to count from
    return Batch(**batch)


def changed(batch: Batch, **tensors: torch.Tensor) -> Batch:
    return Batch(**(vars(batch) | tensors))


def rows_of(batch: Batch, rows) -> Batch:
    """The batch's rows, in the order of `rows` (a slice or positions)."""
    tensors = {name: value for name, value in vars(batch).items() if value is not None}
    return Batch(**{name: value[rows] for name, value in tensors.items()})
