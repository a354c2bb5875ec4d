"""The book of an RQ-VAE: a perceptron to a latent vector, residual codes of it, and the way back.

    z = E(x),  r_1 = z,  id_l = argmin_k ||r_l - e_l,k||^2,  r_l+1 = r_l - e_l,id_l
    x_hat = D(sum_l e_l,id_l)

(Lee et al. 2022, arXiv 2203.01941, section 3; for IDs of items Rajput et al. 2023, arXiv
2305.05065, section 3.1.) Made by `models.rq_vae_training.fit`, and as the stack of one modality by
`models.mm_rq_vae_training.fit`.

Shape suffixes: N rows, D dims, Z latent dims, O dims of a layer's output, K codes, L levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.exact_mlp import ExactMlp
from models.residual_codebook import Codebook, check_names
from models.rows import check_rows


@dataclass(frozen=True, kw_only=True)
class RqVaeBook:
    """One family's net and books: `encoder` (D to Z), `latent` books (K, Z), `decoder` (Z to D)."""

    encoder: ExactMlp
    latent: Codebook
    decoder: ExactMlp
    method: str = "rq_vae"
    """Or `mm_rq_vae`."""

    def __post_init__(self) -> None:
        ends = (self.encoder.dims, self.encoder.out_dims)
        if ends[1] != self.latent.dims or ends[::-1] != (self.decoder.dims, self.decoder.out_dims):
            raise ValueError(
                f"encoder {ends[0]} to {ends[1]} dims, codebooks of {self.latent.dims}, "
                f"decoder {self.decoder.dims} to {self.decoder.out_dims} do not fit"
            )

    @property
    def levels(self) -> int:
        return self.latent.levels

    @property
    def dims(self) -> int:
        return self.encoder.dims

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return self.latent.sizes

    def encode(self, x_ND: Tensor) -> Tensor:
        """Codes (N, L) int64. A row's codes depend on that row and the book alone.

        ValueError for rows of another width, or naming the first row that is not finite.
        """
        return self.latent.encode(self.encoder(self._check(x_ND)))

    def decode(self, codes_NL: Tensor, levels: int | None = None) -> Tensor:
        """x_hat (N, D) = D(sum of the first `levels` codes' latents); default: all.

        The decoder was trained on all levels: fewer are coarser than they need be. Codes beyond the
        book's levels are not read. ValueError for codes outside the books, or more levels than the
        books or the codes have.
        """
        return self.decoder(self.latent.decode(codes_NL, levels))

    def last_distances(self, x_ND: Tensor, codes_NL: Tensor) -> Tensor:
        """Squared latent distances (N, K) to every code of the last level, given the earlier ones.

        What `encode` minimises at that level, to rounding; for collisions (`models.collisions`).
        """
        return self.latent.last_distances(self.encoder(self._check(x_ND)), codes_NL)

    def _check(self, x_ND: Tensor) -> Tensor:
        x_ND = check_rows(x_ND)
        if x_ND.shape[1] != self.dims:
            raise ValueError(f"the codebook takes {self.dims} dims, got {x_ND.shape[1]}")
        return x_ND

    def tensors(self) -> dict[str, Tensor]:
        """`encoder_weight_i`, `encoder_bias_i`, the decoder's, and `codebook_l`."""
        named = {}
        for part, mlp in (("encoder", self.encoder), ("decoder", self.decoder)):
            for index, (weight_OD, bias_O) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
                named[f"{part}_weight_{index}"] = weight_OD
                named[f"{part}_bias_{index}"] = bias_O
        for level, book_KZ in enumerate(self.latent.residuals):
            named[f"codebook_{level}"] = book_KZ
        return named

    def settings(self) -> dict[str, Any]:
        """What `from_tensors` needs besides the tensors; plain JSON."""
        return {"method": self.method}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
    ) -> "RqVaeBook":
        """The inverse of `tensors`; ValueError for a missing or an unknown name."""

        def numbered(stem: str) -> list[str]:
            count = sum(name.startswith(f"{stem}_") for name in tensors)
            return [f"{stem}_{index}" for index in range(count)]

        stems = [f"{mlp}_{part}" for mlp in ("encoder", "decoder") for part in ("weight", "bias")]
        names = {stem: numbered(stem) for stem in (*stems, "codebook")}
        check_names(tensors, {n for every in names.values() for n in every}, settings["method"])
        found = {stem: tuple(tensors[name] for name in every) for stem, every in names.items()}
        return cls(
            encoder=ExactMlp(weights=found["encoder_weight"], biases=found["encoder_bias"]),
            latent=Codebook(residuals=found["codebook"]),
            decoder=ExactMlp(weights=found["decoder_weight"], biases=found["decoder_bias"]),
            method=settings["method"],
        )
