"""Loads transformers' own model from a local folder of safetensors, without remote code.

A checkpoint that lacks a tensor is refused: transformers would draw a random one and warn.
"""

from pathlib import Path
from typing import Any

import torch

from feature_repo.errors import InputError

NOT_READ = ("pooler.", "masked_spec_embed")
"""Weights that a mean of states does not depend on: a checkpoint may lack them."""


def load_native(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The model by its `model_type`, in evaluation mode."""
    from transformers import AutoConfig, AutoModel

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, **local)
    # Else transformers 5 gives the last state of a pre-norm model before its final norm.
    config.tie_last_hidden_states = True
    model, loading = AutoModel.from_pretrained(
        folder, config=config, use_safetensors=True, dtype=dtype, output_loading_info=True, **local
    )
    missing = [name for name in loading["missing_keys"] if not name.startswith(NOT_READ)]
    if missing or loading["mismatched_keys"]:
        raise InputError(
            f"the weights in {folder} do not fit its config: missing {sorted(missing)[:4]}, "
            f"of another shape {sorted(map(str, loading['mismatched_keys']))[:4]}"
        )
    return model.eval().to(device)
