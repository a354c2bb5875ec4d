"""MME-SID's item side: one input vector an item, its score heads, and the matrix they fold into.

    u_m(i)  = [W_m e_m(i) ; sum_l E_ml[code_ml(i)]]            m a modality ("family")
    input   v(i) = s A_0 g(i),   g(i) = silu(B [u_1(i) ; ... ; u_M(i)] + b),   s = 1 / sqrt(D)
    heads   head_0(i) = v(i),   head_m(i) = s A_m u_m(i)
    matrix  sum_h w_h(f_i) head_h(i) = s [w_0 g ; w_1 u_1 ; ... ; w_M u_M](i) [A_0 ; A_1 ; ... ]

Raw embeddings e_m are frozen; W, E, A, B are trained (paper section 3). The last line is why the
fusion costs one matrix product: the heads are linear in what the weights multiply.

Chosen here, open in the paper: the MLP has one hidden layer, W_m brings e_m to the width of the
code embeddings, and the head of the fused item is the input vector itself. Raw tables and code
embeddings are divided by one number a family, the root mean square over the items that have them
(of the code embeddings: of their sum over levels), so that one learning rate fits every encoder
and quantizer; a scalar changes no order of similarities. With s, input and item vectors start with
a root mean square of about 1 / sqrt(D): scores of a normalised state then have a spread of about 1,
and the inputs the size of a Llama checkpoint's own token embeddings.

Shapes: I rows of items with the padding (row 0), N items, F families, D LLM width, D_m raw width,
L levels, K codes, Z code width, H hidden width, U_m width of u_m.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import MISSING_CODE
from models.code_embedding import CodeEmbedding
from models.frequency_fusion import FrequencyFusion, frequencies


@dataclass(frozen=True, kw_only=True)
class MmeSidConfig:
    """Sizes of the item side, recorded in the model folder."""

    families: tuple[str, ...]
    """Modalities, in the order of `dims` and of the codes."""
    dims: tuple[int, ...]
    """Width of each family's raw embeddings; 0: the family has semantic IDs alone."""
    levels: int
    """Codes in a semantic ID; 0: raw embeddings alone."""
    codes: int
    """Codes in a codebook."""
    code_width: int
    """Z: of the code embeddings, and of the projected raw embeddings."""
    hidden: int = 512
    """Of the MLP that fuses the families."""
    temperature: float = 1e-3
    """Of the fusion's softmax."""
    consistency: float = 0.0
    """Weight of the distance between semantic-ID embeddings and the quantizer's (`consistency`)."""

    def __post_init__(self) -> None:
        for name in ("families", "dims"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON brings lists
        if not self.families or len(set(self.families)) != len(self.families):
            raise ValueError(
                f"MmeSidConfig.families must be distinct, one at least, got {self.families}"
            )
        if len(self.dims) != len(self.families) or min(self.dims) < 0:
            raise ValueError(
                f"MmeSidConfig.dims must be a width of at least 0 for each of {self.families}, "
                f"got {self.dims}"
            )
        if self.levels < 0 or (self.levels == 0 and min(self.dims) == 0):
            raise ValueError(
                "MmeSidConfig.levels must be at least 1 where a family has no raw embeddings, "
                f"got {self.levels} with dims {self.dims}"
            )
        for name in ("codes", "code_width", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"MmeSidConfig.{name} must be at least 1, got {getattr(self, name)}"
                )
        if not self.temperature > 0:
            raise ValueError(f"MmeSidConfig.temperature must be above 0, got {self.temperature}")
        if not self.consistency >= 0:
            raise ValueError(f"MmeSidConfig.consistency must be at least 0, got {self.consistency}")

    def widths(self) -> list[int]:
        """U_m of each family."""
        return [self.code_width * ((dim > 0) + (self.levels > 0)) for dim in self.dims]


class MmeSidItems(nn.Module):
    """Trained parameters and frozen tables of the item side. Random parts: seed torch before.

    `raw`: family -> (I, D_m), zero rows where an item lacks it, row 0 zeros; families without raw
    embeddings are left out. `codes_IFL` int64 with MISSING_CODE. `code_embeddings`: family ->
    (L, K, Z), the quantizer's latent books, as the start; at random when None. `counts_I`: train
    listens. ValueError naming what does not fit the config.
    """

    frequency_I: Tensor
    codes_IFL: Tensor

    def __init__(
        self,
        config: MmeSidConfig,
        width: int,
        *,
        raw: Mapping[str, Tensor],
        codes_IFL: Tensor,
        code_embeddings: Mapping[str, Tensor] | None,
        counts_I: Tensor,
    ) -> None:
        super().__init__()
        self.config = config
        _check_tables(config, raw, codes_IFL, code_embeddings, len(counts_I))
        self.register_buffer("frequency_I", frequencies(counts_I))
        self.register_buffer("codes_IFL", codes_IFL.long().clone())
        for place, (family, dim) in enumerate(zip(config.families, config.dims, strict=True)):
            if dim:
                self.register_buffer(f"raw_{place}", unit(raw[family].float()))
        self.projections = nn.ModuleDict(
            {
                str(place): _linear(dim, config.code_width, 1 / math.sqrt(dim))
                for place, dim in enumerate(config.dims)
                if dim
            }
        )
        self.code_tables = nn.ModuleList(
            CodeEmbedding(config.levels, config.codes, config.code_width)
            for _ in (config.families if config.levels else ())
        )
        for place, family in enumerate(config.families if config.levels else ()):
            start_LKZ = None if code_embeddings is None else code_embeddings[family]
            self._start_codes(place, start_LKZ)
            if config.consistency:
                start_RZ = self.code_table(place).table.weight.detach().clone()
                self.register_buffer(f"quantized_{place}", start_RZ)
        widths = config.widths()
        self.mix = nn.Linear(sum(widths), config.hidden)
        # 1 / sqrt(D), outside of the weights: inside, one step of Adam at the paper's learning
        # rate would move them by a third of their size, and scores of a wide LLM by hundreds.
        self.scale = 1 / math.sqrt(width)
        self.outputs = nn.ModuleList(
            _linear(size, width, 1 / math.sqrt(size)) for size in (config.hidden, *widths)
        )
        self.fusion = FrequencyFusion(1 + len(widths), config.temperature)

    def _start_codes(self, place: int, start_LKZ: Tensor | None) -> None:
        table = self.code_table(place)
        rows_RZ, codes_IL = table.table.weight, self.codes_IFL[:, place]
        with torch.no_grad():
            if start_LKZ is None:
                rows_RZ[:-1].normal_(std=1 / math.sqrt(self.config.levels))
                return
            rows_RZ[:-1] = start_LKZ.flatten(0, 1).to(rows_RZ)
            has_I = (codes_IL != MISSING_CODE).any(1)
            if has_I.any():
                rows_RZ[:-1] /= _rms(table(codes_IL[has_I]))

    def code_table(self, place: int) -> CodeEmbedding:
        """The semantic-ID embeddings of the family at this place."""
        return cast(CodeEmbedding, self.code_tables[place])

    @property
    def items(self) -> int:
        """Rows with the padding."""
        return len(self.codes_IFL)

    def parts(self, rows_N: Tensor | None = None) -> list[Tensor]:
        """u_m (N, U_m) of each family; of all rows when none are named."""
        parts = []
        for place, dim in enumerate(self.config.dims):
            halves = []
            if dim:
                raw_ID = getattr(self, f"raw_{place}")
                halves.append(
                    self.projections[str(place)](raw_ID if rows_N is None else raw_ID[rows_N])
                )
            if self.config.levels:
                halves.append(self.code_vectors(place, rows_N))
            parts.append(torch.cat([half.float() for half in halves], dim=1))
        return parts

    def code_vectors(self, place: int, rows_N: Tensor | None = None) -> Tensor:
        """sum_l E_ml[code_ml] (N, Z) of the family at this place: its semantic-ID embeddings."""
        codes_IL = self.codes_IFL[:, place]
        summed_NZ: Tensor = self.code_tables[place](
            codes_IL if rows_N is None else codes_IL[rows_N]
        )
        return summed_NZ

    def mixed(self, parts: list[Tensor]) -> Tensor:
        """g (N, H)."""
        return functional.silu(self.mix(torch.cat(parts, dim=1)))

    def inputs(self, rows_N: Tensor) -> Tensor:
        """v (N, D): what the LLM reads in place of a token's embedding."""
        vectors_ND: Tensor = self.outputs[0](self.scale * self.mixed(self.parts(rows_N)))
        return vectors_ND

    def heads(self, rows_N: Tensor | None = None) -> Tensor:
        """head_h (N, 1 + M, D): the fused item's, then each family's."""
        parts = self.parts(rows_N)
        features = [self.scale * x_NU for x_NU in (self.mixed(parts), *parts)]
        return torch.stack([a(x) for a, x in zip(self.outputs, features, strict=True)], dim=1)

    def head_weights(self, rows_N: Tensor | None = None) -> Tensor:
        """w_h(f_i) (N, 1 + M)."""
        frequency_N = self.frequency_I if rows_N is None else self.frequency_I[rows_N]
        weights_NH: Tensor = self.fusion(frequency_N)
        return weights_NH

    def matrix(self, rows_N: Tensor | None = None) -> Tensor:
        """sum_h w_h(f_i) head_h(i) (N, D), in one product; of all rows when none are named."""
        parts = self.parts(rows_N)
        weights = (self.scale * self.head_weights(rows_N)).unsqueeze(2).unbind(1)
        features = [self.mixed(parts), *parts]
        weighted = [w_N1 * x_NU for w_N1, x_NU in zip(weights, features, strict=True)]
        a_UD = torch.cat([cast(nn.Linear, output).weight.T for output in self.outputs])
        return torch.cat(weighted, dim=1) @ a_UD

    def consistency(self, rows_N: Tensor) -> Tensor:
        """Mean over items and families of ||SID - quantized||^2 / Z, a scalar.

        Both in units of the quantized embeddings' root mean square. 0 where an item has no code.
        """
        distances = []
        for place in range(len(self.code_tables)):
            table, codes_NL = self.code_table(place), self.codes_IFL[rows_N, place]
            moved_RZ = table.table.weight - getattr(self, f"quantized_{place}")
            row_NL = torch.where(
                codes_NL == MISSING_CODE, table.padding_row, codes_NL + table.first_row_L
            )
            distances.append(moved_RZ[row_NL].sum(1).square().mean())
        return torch.stack(distances).mean()


def unit(table_ID: Tensor) -> Tensor:
    """The table over the root mean square of its rows that are not zero."""
    there_N = table_ID[(table_ID != 0).any(1)]
    return table_ID / _rms(there_N) if len(there_N) else table_ID.clone()


def _rms(table_ND: Tensor) -> float:
    return float(table_ND.detach().double().square().mean().sqrt()) or 1.0


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


def _check_tables(
    config: MmeSidConfig,
    raw: Mapping[str, Tensor],
    codes_IFL: Tensor,
    code_embeddings: Mapping[str, Tensor] | None,
    items: int,
) -> None:
    wanted = (items, len(config.families), config.levels)
    if tuple(codes_IFL.shape) != wanted:
        raise ValueError(f"codes_IFL must be {wanted}, got {tuple(codes_IFL.shape)}")
    if (
        codes_IFL.numel()
        and not MISSING_CODE <= int(codes_IFL.min()) <= int(codes_IFL.max()) < config.codes
    ):
        raise ValueError(
            f"codes must be {MISSING_CODE} (none) to {config.codes - 1}, "
            f"got {int(codes_IFL.min())} to {int(codes_IFL.max())}"
        )
    for family, dim in zip(config.families, config.dims, strict=True):
        if dim and (family not in raw or tuple(raw[family].shape) != (items, dim)):
            got = tuple(raw[family].shape) if family in raw else None
            raise ValueError(f"raw[{family!r}] must be {(items, dim)}, got {got}")
    if code_embeddings is None:
        if config.consistency:
            raise ValueError(
                f"consistency {config.consistency} needs the quantizer's code embeddings; "
                "got none (a random start)"
            )
        return
    shape = (config.levels, config.codes, config.code_width)
    for family in config.families:
        got = tuple(code_embeddings[family].shape) if family in code_embeddings else None
        if got != shape:
            raise ValueError(f"code_embeddings[{family!r}] must be {shape}, got {got}")
