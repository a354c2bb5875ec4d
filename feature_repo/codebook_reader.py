"""Codebooks for other teams: load, encode and decode with numpy alone.

    from feature_repo.codebook_reader import read_codebook

    book = read_codebook(Path("workspace/codebooks/codebook-0123456789ab"))
    x_ND = book.prepare({"text": text_vectors, "audio": audio_vectors})   # from `crescendo embed`
    codes_NL = book.encode(x_ND)                                          # the rows' semantic IDs
    x_hat_ND = book.decode(codes_NL)                                      # what the IDs remember

No torch, no Feast, no Ray: `pip install --no-deps crescendo` beside numpy is enough. Codes equal
those of `crescendo assign`, which are those of float64 arithmetic with ties to the lowest code.

Shape suffixes: N rows, M rows of one chunk, D dims, W dims of one PQ slice, P dims of prepared
rows, K codes, O outputs of a layer, L levels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.artifacts import read_manifest
from feature_repo.errors import ArtifactError, InputError

CODEBOOK_FILE = "codebook.safetensors"
DTYPES: dict[str, Any] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}
METHODS = ("psrq", "rq_kmeans", "vq", "pq", "rq_vae", "mm_rq_vae")
LATENT = ("rq_vae", "mm_rq_vae")
"""Methods that quantize what a perceptron makes of a row."""
CHUNK_ROWS = 4_096
MARGIN = 1e-12
"""Codes whose scores are this close, relative to their terms, are scored again exactly."""

Half = tuple[np.ndarray, np.ndarray, float]
"""Points (M, D), their centroids (K, D), and the weight of the squared distance between them."""


@dataclass(frozen=True, kw_only=True)
class NumpyCodebook:
    """One family's books. `tensors` have the names of the file, `modes` the modalities' order."""

    codebook_id: str
    family: str
    method: str
    prefix_weight: float
    modes: dict[str, str]
    """How each modality's vectors are prepared: none, l2, standard or whiten."""
    tensors: dict[str, np.ndarray]

    @property
    def levels(self) -> int:
        return len(self._books())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return tuple(len(book_KD) for book_KD in self._books())

    @property
    def dims(self) -> int:
        """Of prepared rows."""
        if self.method == "pq":
            return len(self.tensors["mean"])
        name = "encoder_weight_0" if self.method in LATENT else "residual_0"
        return self.tensors[name].shape[1]

    def prepare(self, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Embeddings by modality -> rows (N, D) float32 that the book takes.

        Each (N, D_m), the same items in the same rows; zeros where an item lacks the modality.
        InputError for other modalities, widths or row counts, and for values that are not finite.
        """
        if set(vectors) != set(self.modes):
            raise InputError(
                f"codebook {self.codebook_id} takes vectors of {sorted(self.modes)}, "
                f"got {sorted(vectors)}"
            )
        counts = {name: len(vector_ND) for name, vector_ND in vectors.items()}
        if len(set(counts.values())) != 1:
            raise InputError(f"every modality needs the same items, got rows {counts}")
        return np.concatenate([self._prepared(name, vectors[name]) for name in self.modes], axis=1)

    def encode(self, x_ND: np.ndarray) -> np.ndarray:
        """Codes (N, L) int64 of prepared rows.

        InputError for rows of another width, or naming the first row that is not finite.
        """
        x_ND = _check(x_ND, self.dims, f"codebook {self.codebook_id}")
        parts = [x_ND[at : at + CHUNK_ROWS] for at in range(0, len(x_ND), CHUNK_ROWS)]
        coded = [self._encode(x_MD) for x_MD in parts]
        return np.concatenate([np.zeros((0, self.levels), dtype=np.int64), *coded])

    def decode(self, codes_NL: np.ndarray, levels: int | None = None) -> np.ndarray:
        """x_hat (N, D) float32 of prepared rows, from the first `levels` codes (default: all).

        InputError for codes outside the books, or fewer codes than levels.
        """
        books = self._books()
        levels = self.levels if levels is None else levels
        if not 1 <= levels <= self.levels or codes_NL.ndim != 2 or codes_NL.shape[1] < levels:
            raise InputError(
                f"{levels} levels asked of a codebook of {self.levels} "
                f"and codes of shape {codes_NL.shape}"
            )
        for level, size in enumerate(self.sizes[:levels]):
            code_N = codes_NL[:, level]
            if len(code_N) and not 0 <= code_N.min() <= code_N.max() < size:
                raise InputError(f"codes of level {level} must be 0 to {size - 1}")
        rows = [books[level][codes_NL[:, level]] for level in range(levels)]
        if self.method == "pq":  # a slice that is not read has the mean of the fitted rows
            rest_D = self.tensors["mean"][sum(row_NW.shape[1] for row_NW in rows) :]
            return np.concatenate([*rows, np.tile(rest_D, (len(codes_NL), 1))], axis=1)
        x_hat_ND = np.zeros((len(codes_NL), books[0].shape[1]), dtype=np.float32)
        for row_ND in rows:
            x_hat_ND += row_ND
        return self._perceptron("decoder", x_hat_ND) if self.method in LATENT else x_hat_ND

    def _books(self) -> list[np.ndarray]:
        stem = "codebook" if self.method in LATENT else "residual"
        stem = "subspace" if self.method == "pq" else stem
        count = sum(name.startswith(f"{stem}_") for name in self.tensors)
        return [self.tensors[f"{stem}_{level}"] for level in range(count)]

    def _encode(self, x_MD: np.ndarray) -> np.ndarray:
        books = self._books()
        if self.method == "pq":
            ends = np.cumsum([book_KW.shape[1] for book_KW in books])[:-1]
            slices = np.split(x_MD, ends, axis=1)
            pairs = zip(slices, books, strict=True)
            return np.stack([_nearest([(x_MW, book_KW, 1.0)]) for x_MW, book_KW in pairs], 1)
        if self.method in LATENT:
            x_MD = self._perceptron("encoder", x_MD)
        residual_MD, codes = x_MD, []
        prefix_MD = np.zeros_like(x_MD)
        for level, book_KD in enumerate(books):
            # argmin ||x_l - c||^2 + alpha^2 ||p - c_p||^2, p = sum of the rows already subtracted
            halves = [(residual_MD, book_KD, 1.0)]
            if level > 0 and self.prefix_weight > 0:
                prefix_KD = self.tensors[f"prefix_{level}"]
                halves.append((prefix_MD, prefix_KD, self.prefix_weight**2))
            codes.append(_nearest(halves))
            row_MD = book_KD[codes[-1]]
            residual_MD, prefix_MD = residual_MD - row_MD, prefix_MD + row_MD
        return np.stack(codes, 1)

    def _prepared(self, modality: str, vectors_ND: np.ndarray) -> np.ndarray:
        """Centred, scaled or projected, then of unit norm; a row of zeros stays one."""
        mean_D = self.tensors.get(f"{modality}.mean")
        width = vectors_ND.shape[-1] if mean_D is None else len(mean_D)
        x_ND = _check(vectors_ND, width, f"modality {modality} of codebook {self.codebook_id}")
        if mean_D is None:
            return x_ND
        y_NP = x_ND.astype(np.float64) - mean_D
        if self.modes[modality] == "standard":
            y_NP *= self.tensors[f"{modality}.scale"]
        if self.modes[modality] == "whiten":
            y_NP = y_NP @ self.tensors[f"{modality}.projection"].astype(np.float64)
        norm_N1 = np.sqrt((y_NP**2).sum(1, keepdims=True))
        present_N1 = (norm_N1 > 0) & (x_ND != 0).any(1, keepdims=True)
        y_NP = np.divide(y_NP, norm_N1, out=np.zeros_like(y_NP), where=present_N1)
        return y_NP.astype(np.float32)

    def _perceptron(self, name: str, x_MD: np.ndarray) -> np.ndarray:
        """Linear layers with ReLU between them, by integers that float64 adds exactly.

        The scheme of `models.exact_products`, so that the results have the same bits.
        """
        y_MO = x_MD.astype(np.float64)
        weights = [key for key in self.tensors if key.startswith(f"{name}_weight_")]
        for index in range(len(weights)):
            weight_OD, scale_O1 = _integers(self.tensors[f"{name}_weight_{index}"])
            x_MD, scale_M1 = _integers(np.maximum(y_MO, 0) if index else y_MO)
            y_MO = x_MD @ weight_OD.T * scale_M1 * scale_O1.T + self.tensors[f"{name}_bias_{index}"]
        return y_MO.astype(np.float32)


def read_codebook(folder: Path) -> NumpyCodebook:
    """The codebook in `folder`, its files checked against the manifest's sha256.

    ArtifactError where it is missing, changed, or of a format that is not this version's.
    """
    manifest = read_manifest(folder, kind="codebook", made_by="quantize")
    try:
        settings = manifest.info["settings"]
        book = NumpyCodebook(
            codebook_id=manifest.id,
            family=manifest.info["family"],
            method=settings["method"],
            prefix_weight=float(settings.get("prefix_weight", 0)),
            modes=manifest.info["preprocess"],
            tensors=read_safetensors(folder / CODEBOOK_FILE),
        )
        if book.method not in METHODS or not book.levels:
            raise ValueError(f"method {book.method} with tensors {sorted(book.tensors)}")
    except (KeyError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"codebook {manifest.id} is not one that this version reads ({error}); "
            "run `crescendo quantize` to make one"
        ) from error
    return book


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file: 8 bytes for the length of a JSON header, the header, raw values.

    ValueError where header and size do not fit each other.
    """
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    if not 8 < start <= len(data):
        raise ValueError(f"{path.name} is cut off")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        values = np.frombuffer(data[start + first : start + last], DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def _check(x_ND: np.ndarray, dims: int, taker: str) -> np.ndarray:
    if x_ND.ndim != 2 or x_ND.shape[1] != dims:
        raise InputError(f"{taker} takes rows of {dims} dims, got shape {x_ND.shape}")
    bad_N = ~np.isfinite(x_ND).all(1)
    if bad_N.any():
        raise InputError(
            f"row {int(bad_N.argmax())} holds a value that is not finite; "
            f"{int(bad_N.sum())} of {len(bad_N)} rows do"
        )
    return x_ND.astype(np.float32)


def _nearest(halves: Sequence[Half]) -> np.ndarray:
    """Codes (M,) of the least sum of weighted squared distances; ties to the lowest code."""
    halves = [(x_MD.astype(np.float64), c_KD.astype(np.float64), w) for x_MD, c_KD, w in halves]
    scores_MK = np.zeros((len(halves[0][0]), len(halves[0][1])))
    terms_M1 = np.zeros((len(scores_MK), 1))
    for x_MD, c_KD, weight in halves:
        size_K = (c_KD**2).sum(1)
        scores_MK += weight * (size_K - 2 * x_MD @ c_KD.T)  # ||x - c||^2 - ||x||^2
        terms_M1 += weight * ((x_MD**2).sum(1, keepdims=True) + size_K.max())
    close_MK = scores_MK <= scores_MK.min(1, keepdims=True) + MARGIN * terms_M1
    codes_M = close_MK.argmax(1)
    for row in np.flatnonzero(close_MK.sum(1) > 1):
        code_P = np.flatnonzero(close_MK[row])
        squares = [
            weight * ((x_MD[row] - c_KD[code_P]) ** 2).sum(1) for x_MD, c_KD, weight in halves
        ]
        codes_M[row] = code_P[sum(squares).argmin()]
    return codes_M


def _integers(rows_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as integers of at most 2^b, and the power of two (M, 1) that each was divided by."""
    rows_MD = rows_MD.astype(np.float64)
    bits = (53 - (rows_MD.shape[1] - 1).bit_length()) // 2
    exponent_M1 = np.frexp(np.abs(rows_MD).max(1, keepdims=True))[1]
    scale_M1 = np.ldexp(1.0, exponent_M1 - bits)
    return np.round(rows_MD / scale_M1), scale_M1
