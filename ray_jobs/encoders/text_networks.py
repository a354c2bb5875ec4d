"""The networks of text encoders: from token ids to the mean of the last states, on any device.

`load_network(folder, ...)` chooses by `config.json`: Llama's shape goes through `models.llama`,
many texts one after the other without padding; any other model is transformers' own class, in
padded batches of like length. Weights come from local safetensors; no code of the folder is
run, and a checkpoint that lacks a tensor is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from feature_repo.errors import InputError
from models.encoders.llama_fast import FastLlama
from models.encoders.packing import token_batches
from models.encoders.pooling import sequence_means
from models.encoders.sent_home import sent_home
from models.llama import Llama, load_llama
from ray_jobs.encoders.native import load_native
from ray_jobs.published_config import read_config
from ray_jobs.published_weights import read_weights

CPU_TOKENS, CUDA_TOKENS = 2_048, 32_768
"""Tokens of one forward pass, padding included. Changes the speed, not the vectors."""


class TextNetwork(Protocol):
    def begin(self, tokens: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """Starts with the texts' tokens, none empty; the call that it returns waits for the mean of
        each one's last states: (texts, width) float32."""


def load_network(folder: Path, *, starts: bool, padding_id: int, dtype: str) -> TextNetwork:
    """`starts`: whether the tokenizer puts a start token before every text."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        # The pool has an actor a core: more threads in each only wait for each other.
        torch.set_num_threads(1)
    config, kind = read_config(folder), getattr(torch, dtype)
    if not is_packed(config):
        return PaddedNetwork(load_native(folder, kind, device), padding_id, device)
    try:
        model = load_llama(config, read_weights(folder), dtype=kind, device=device)
    except ValueError as error:
        raise InputError(f"the weights in {folder} do not fit its config: {error}") from error
    states = FastLlama(model) if device.type == "cuda" else partial(_plain_states, model)
    return PackedNetwork(states, starts, device)


def is_packed(config: dict[str, Any]) -> bool:
    """Whether `models.llama` computes the model."""
    return config.get("model_type") == "llama"


@dataclass(frozen=True)
class PackedNetwork:
    """Llama's shape. The start token is context for the others, and is not pooled: its state says
    nothing of the text and is many times as long as theirs."""

    states: Callable[[Tensor, Tensor], Tensor]
    """ids_P, lengths_S -> (P, D): the last states under the final norm."""
    starts: bool
    """Whether a start token is before every text."""
    device: torch.device

    @torch.inference_mode()
    def begin(self, tokens: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        parts = []
        # Sorted on a CPU, where texts of like length go through attention side by side.
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        sizes = [len(tokens[index]) for index in order]
        for run in token_batches(sizes, _budget(self.device)):
            lengths_S = torch.tensor(sizes[run.start : run.stop])
            ids_P = torch.from_numpy(np.concatenate([tokens[order[at]] for at in run]))
            if self.device.type == "cuda":
                ids_P = ids_P.pin_memory()  # from other memory the host waits for all before it
            ids_P = ids_P.to(self.device, non_blocking=True)
            states_PD = self.states(ids_P, lengths_S)
            parts.append(sequence_means(states_PD, lengths_S, skip_first=self.starts))
        finish = sent_home(torch.cat(parts))

        def finished() -> np.ndarray:
            means_SD = finish().numpy()
            vectors = np.empty_like(means_SD)
            vectors[order] = means_SD
            return vectors

        return finished


def _plain_states(model: Llama, ids_P: Tensor, lengths_S: Tensor) -> Tensor:
    return model(model.embed(ids_P), lengths_S)


@dataclass(frozen=True)
class PaddedNetwork:
    """Any encoder that transformers knows, with a mask for the padding at the right."""

    model: Any
    padding_id: int
    device: torch.device

    @torch.inference_mode()
    def begin(self, tokens: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        vectors: list[np.ndarray] = [np.empty(0)] * len(tokens)
        sizes = [len(ids) for ids in tokens]
        for batch in padded_batches(sizes, _budget(self.device)):
            ids = np.full((len(batch), sizes[batch[-1]]), self.padding_id, np.int64)
            for line, index in enumerate(batch):
                ids[line, : sizes[index]] = tokens[index]
            lengths = torch.tensor([sizes[index] for index in batch])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(self.device)
            states = self.model(
                input_ids=torch.from_numpy(ids).to(self.device), attention_mask=mask
            ).last_hidden_state.float()
            weights = mask.unsqueeze(-1)
            means = (states * weights).sum(1) / weights.sum(1)
            for index, mean in zip(batch, means.cpu().numpy(), strict=True):
                vectors[index] = mean
        return partial(np.stack, vectors)


def padded_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices by rising length, cut so that rows times the longest stays within the budget.

    A text that is longer than the budget is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _budget(device: torch.device) -> int:
    return CPU_TOKENS if device.type == "cpu" else CUDA_TOKENS
