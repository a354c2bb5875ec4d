"""The networks of audio encoders: from windows to the mean over time of the wanted states.

`load_network(folder, ...)` chooses by `config.json`: MERT's shape goes through
`models.encoders.hubert`, any other HuBERT or wav2vec2 is transformers' own class. Weights come
from local safetensors, no code from the folder; a checkpoint that lacks a tensor is refused.

Shapes: W windows, T samples, F frames, K wanted states, D hidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from feature_repo.errors import InputError
from models.encoders.hubert import Hubert, load_hubert, normalised
from models.encoders.hubert_fast import FastHubert, HubertPlan, HubertStream
from ray_jobs.encoders.native import load_native
from ray_jobs.published_config import read_config
from ray_jobs.published_weights import read_weights

CPU_WINDOWS, CUDA_WINDOWS = 4, 64
"""Windows of one forward pass. Changes the speed, not the vectors: a GPU computes whole batches, so
32 previews of six windows, in batches of 128, would be a quarter padding."""


class AudioNetwork(Protocol):
    def begin(self, pieces: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """Starts with int16 windows, in pieces of (any number, T), which may change as soon as it
        returns; the call that it returns waits for their means: (W, K, D) float32."""


def load_network(folder: Path, states: Sequence[int], dtype: str, *, samples: int) -> AudioNetwork:
    """`samples`: T of all windows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        # The pool has an actor a core: more threads in each only wait for each other.
        torch.set_num_threads(1)
    config, kind = read_config(folder), getattr(torch, dtype)
    if not is_mert_shaped(config):
        return NativeNetwork(load_native(folder, kind, device), tuple(states), device)
    try:
        model = load_hubert(config, read_weights(folder), dtype=kind, device=device)
    except ValueError as error:
        raise InputError(f"the weights in {folder} do not fit its config: {error}") from error
    if device.type == "cpu" or samples % model.sizes.hop:
        return HubertNetwork(model, tuple(states), device)
    fast = FastHubert(model, HubertPlan())
    return FastNetwork(HubertStream(fast, batch=CUDA_WINDOWS, samples=samples, states=states))


def is_mert_shaped(config: dict[str, Any]) -> bool:
    """Whether `models.encoders.hubert` computes the model."""
    return (
        config.get("model_type") == "hubert"
        and config.get("feat_extract_norm") == "group"
        and not config.get("conv_bias")
    )


@dataclass(frozen=True)
class FastNetwork:
    """MERT's shape on a GPU."""

    stream: HubertStream

    def begin(self, pieces: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        finish = self.stream.begin(pieces)
        return lambda: finish().numpy()


@dataclass(frozen=True)
class HubertNetwork:
    """MERT's shape elsewhere."""

    model: Hubert
    states: tuple[int, ...]
    device: torch.device

    @torch.inference_mode()
    def begin(self, pieces: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        parts = [self.model(part_WT, self.states) for part_WT in _batches(pieces, self.device)]
        means_WKD = torch.cat(parts).cpu().numpy()
        return lambda: means_WKD


@dataclass(frozen=True)
class NativeNetwork:
    model: Any
    states: tuple[int, ...]
    device: torch.device

    @torch.inference_mode()
    def begin(self, pieces: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        parts = []
        for part_WT in _batches(pieces, self.device):
            samples_WT = normalised(part_WT).to(self.model.dtype)
            states = self.model(samples_WT, output_hidden_states=True).hidden_states
            means_WKD = torch.stack([states[k].float().mean(1) for k in self.states], dim=1)
            parts.append(means_WKD.cpu().numpy())
        return partial(np.concatenate, parts)


def _batches(pieces: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    size = CPU_WINDOWS if device.type == "cpu" else CUDA_WINDOWS
    cut_WT = torch.from_numpy(np.concatenate(pieces))
    return [part.to(device) for part in cut_WT.split(size)]
