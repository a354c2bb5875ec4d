"""Builds a ranker from its config, new or with saved weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models.din import DIN
from models.mcca import MCCA
from models.ranker_config import RankerConfig

RANKERS = {"din": DIN, "mcca": MCCA}


def build_ranker(config: RankerConfig) -> nn.Module:
    """A new ranker with random weights (seed torch before)."""
    if config.model not in RANKERS:
        raise ValueError(f"RankerConfig.model must be one of {sorted(RANKERS)}, got {config.model}")
    return RANKERS[config.model](config)


def load_ranker(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """A trained ranker in evaluation mode, from its recorded config and its weights."""
    ranker = build_ranker(RankerConfig(**config))
    ranker.load_state_dict(dict(weights))
    return ranker.eval()
