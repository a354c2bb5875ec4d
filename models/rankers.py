"""Builds a ranker from its config, new or with saved weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models.deepfm import DeepFM
from models.din import DIN
from models.din_sid import DINWithIDs
from models.dnn import DNN
from models.mcca import MCCA
from models.ranker_config import RankerConfig
from models.sim import SIM
from models.transformer import TargetTransformer

RANKERS = {
    "mcca": MCCA,
    "mcca_wo_msc": MCCA,
    "mcca_wo_mjc": MCCA,
    "din": DIN,
    "din_sid": DINWithIDs,
    "dnn": DNN,
    "deepfm": DeepFM,
    "sim": SIM,
    "transformer": TargetTransformer,
}


def build_ranker(config: RankerConfig) -> nn.Module:
    """A new ranker with random weights (seed torch before)."""
    return RANKERS[config.model](config)


def load_ranker(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """A trained ranker in evaluation mode, from its recorded config and its weights."""
    ranker = build_ranker(RankerConfig(**config))
    ranker.load_state_dict(dict(weights))
    return ranker.eval()
