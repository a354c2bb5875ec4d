"""Runs of a study of MME-SID's claims: a world, a variant and a seed, to figures.

    shared = Shared(world, RunOptions(), seed=0, device=device)    # trains SASRec, once a seed
    for variant in world_variants(world):
        line = shared.run(variant)

Needs torch and numpy alone. A line is plain JSON: HR@k and nDCG@k of the test part by full ranking
with every user's rank, the effective rank of the tables that the LLM reads and scores with, and
Kendall's tau of every user between a family's raw embeddings and (a) the quantizer's code
embeddings, (b) the semantic-ID embeddings of the trained model.

The backbone is a small Llama with random weights that is trained WHOLE: LoRA on random weights
would leave a random net in the way, which is not what the paper fine-tunes. So a ranking here says
nothing of what a pretrained language model knows; it compares inputs under one and the same net.

Shapes: I rows of items with the padding, N items, F families, L levels, K codes, Z code width, D
LLM width, V users with a target, P positions, S users of a batch.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.batch import MISSING_CODE
from models.collapse import Spectrum, spectrum
from models.forgetting import among, forgetting
from models.full_ranking import ranking_metrics, ranks_of_vectors
from models.llama import Llama
from models.llama_sizes import LlamaSizes
from models.mm_rq_vae import MmRqVaeOptions
from models.mm_rq_vae_training import fit as fit_codes
from models.mme_collaborative import Collaborative
from models.mme_sid import MmeSid
from models.mme_sid_fit import fit as fit_model
from models.mme_sid_items import MmeSidConfig
from models.mme_sid_training import CHOSEN_BY, MmeSidTrainer, MmeSidTraining
from models.mme_variants import (
    COLLABORATIVE,
    GIVEN,
    PAPER_SASREC,
    POPULAR,
    SASREC,
    Variant,
    variants_of,
)
from models.mme_world import MmeWorld
from models.most_popular import most_popular_ranks
from models.next_items import HeldOut, last_rows
from models.per_user import LARGEST, packed
from models.sasrec_training import SasRecOptions

RANKED_USERS = 1024
FROM_SCRATCH = MmeSidTraining(
    epochs=10, batch_size=128, learning_rate=1e-3, ranked_users=RANKED_USERS
)
"""More and larger steps than the paper's, which fine-tunes."""
BCE_SASREC = SasRecOptions(loss="bce", dropout=0.5, epochs=400, patience=20)
"""Loss and dropout of Kang and McAuley 2018 for a sparse set. It learns slowly: patience 5 would
end it on a plateau."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What all runs of a study share. A run takes seconds on a GPU."""

    hidden: int = 256
    """Width of the Llama; its MLPs and the item side's have twice that."""
    layers: int = 2
    heads: int = 4
    training: MmeSidTraining = field(default_factory=lambda: FROM_SCRATCH)
    """Its seed and `bf16` are the run's own. A tau is taken of as many items as `length`."""
    quantizer: MmRqVaeOptions = field(default_factory=lambda: MmRqVaeOptions(learning_rate=1e-3))
    sasrec: SasRecOptions = field(default_factory=SasRecOptions)
    paper_sasrec: SasRecOptions = field(default_factory=lambda: BCE_SASREC)
    """The second baseline, which gives no embeddings to anything."""

    def sizes(self) -> LlamaSizes:
        return LlamaSizes(
            hidden=self.hidden,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.hidden // self.heads,
            intermediate=2 * self.hidden,
            vocab=1,  # items stand in place of tokens
        )


@dataclass(frozen=True, kw_only=True)
class Ids:
    """What a quantizer made of the families: every row's codes, and its latent books."""

    codes_IFL: Tensor
    books: dict[str, Tensor]
    """Family -> (L, K, Z)."""

    def embeddings(self, place: int, family: str) -> Tensor:
        """sum_l book_l[code_l] (I, Z); zeros where a row has no codes."""
        codes_IL, book_LKZ = self.codes_IFL[:, place], self.books[family]
        there_IL1 = (codes_IL != MISSING_CODE).unsqueeze(2)
        picked_ILZ = book_LKZ[torch.arange(codes_IL.shape[1]), codes_IL.clamp(min=0)]
        return (picked_ILZ * there_IL1).sum(1)


class Shared:
    """What the runs of one world and seed share: SASRec, its item table, and fitted quantizers."""

    def __init__(
        self,
        world: MmeWorld,
        options: RunOptions,
        seed: int,
        device: torch.device,
        collaborative: Collaborative | None = None,
    ) -> None:
        """`collaborative`: trained here when None."""
        self.world, self.options, self.seed, self.device = world, options, seed, device
        self.data = world.next_items
        self.test = self.data.held_out("test")
        self._fitted: dict[str, Ids] = {}
        self.sasrec = collaborative or Collaborative.trained(
            self.data, replace(options.sasrec, seed=seed), device
        )
        self.raw = {COLLABORATIVE: self.sasrec.table_ID, **world.raw}

    def baselines(self) -> list[dict[str, Any]]:
        """The lines of SASRec and of the most-popular list, which has no seed but is paired."""
        of, popular_V = self.sasrec, most_popular_ranks(self.data, "test")
        return [
            self._line(SASREC, of.ranks_V, seconds=of.seconds, epochs=of.epochs),
            self._line(POPULAR, popular_V, seconds=0.0, epochs=0),
        ]

    def paper_sasrec(self) -> dict[str, Any]:
        """Trains SASRec as its own paper does; its line."""
        options = replace(self.options.paper_sasrec, seed=self.seed)
        of = Collaborative.trained(self.data, options, self.device)
        return self._line(PAPER_SASREC, of.ranks_V, seconds=of.seconds, epochs=of.epochs)

    def run(self, variant: Variant) -> dict[str, Any]:
        """Trains one variant and measures it. ValueError for a loss that is not finite."""
        started = time.perf_counter()
        ids = self._ids(variant) if variant.ids != "none" else None
        torch.manual_seed(self.seed)
        model = self._model(variant, ids)
        epochs, best = self._train(model)
        line = self._line(
            variant.name,
            self._ranks(model, self.test),
            seconds=time.perf_counter() - started,
            epochs=epochs,
        )
        tables = self._spectra(model, variant)
        line["valid"] = best
        line["families"] = list(variant.families)
        line["collapse"] = {name: found.plain() for name, found in tables.items()}
        line["spectrum"] = [float(f"{share:.4g}") for share in tables["input"].shares_D]
        if ids is not None:
            line |= self._taus(model, variant, ids)
        return line

    def _line(
        self, name: str, ranks_V: np.ndarray, *, seconds: float, epochs: int
    ) -> dict[str, Any]:
        return {
            "world": self.world.name,
            "variant": name,
            "seed": self.seed,
            "seconds": round(seconds, 2),
            "epochs": epochs,
            "metrics": ranking_metrics(ranks_V),
            # Beyond the last k a rank makes no difference.
            "ranks": packed(np.minimum(ranks_V, LARGEST)),
        }

    def _ids(self, variant: Variant) -> Ids:
        """Fitted once for all variants whose quantizers are alike."""
        key = variant.fit_key
        if key not in self._fitted:
            options = replace(self.options.quantizer, seed=self.seed, **variant.quantizer)
            x = {family: torch.from_numpy(self.raw[family][1:]) for family in variant.families}
            fitted = fit_codes(x, options, device=self.device)
            shape = (self.data.items + 1, len(variant.families), options.levels)
            codes_IFL = torch.full(shape, MISSING_CODE)
            for place, (family, x_ND) in enumerate(x.items()):
                has_N = (x_ND != 0).any(1)
                codes_IFL[1:, place][has_N] = fitted[family][0].encode(x_ND[has_N])
            books = {
                family: torch.stack(book.latent.residuals) for family, (book, _) in fitted.items()
            }
            self._fitted[key] = Ids(codes_IFL=codes_IFL, books=books)
        return self._fitted[key]

    def _model(self, variant: Variant, ids: Ids | None) -> MmeSid:
        quantizer = self.options.quantizer
        config = MmeSidConfig(
            families=variant.families,
            dims=tuple(self.raw[family].shape[1] for family in variant.families),
            levels=quantizer.levels if ids is not None else 0,
            codes=quantizer.codes,
            code_width=quantizer.latent_dims,
            hidden=2 * self.options.hidden,
            temperature=variant.temperature,
            consistency=variant.consistency,
        )
        if ids is None:
            codes_IFL = torch.zeros(
                self.data.items + 1, len(variant.families), 0, dtype=torch.int64
            )
        else:
            codes_IFL = ids.codes_IFL
        start = ids.books if ids is not None and variant.ids == "initialised" else None
        model = MmeSid(
            Llama(self.options.sizes()),
            config,
            raw={family: torch.from_numpy(self.raw[family]) for family in variant.families},
            codes_IFL=codes_IFL,
            code_embeddings=start,
            counts_I=torch.from_numpy(self.data.counts_I),
        )
        return model.to(self.device)

    def _train(self, model: MmeSid) -> tuple[int, dict[str, float]]:
        """Trains; the model ends with the weights of the epoch that was best on the validation
        part. Returns that epoch, from 1, and its validation nDCG@10.
        """
        training = replace(self.options.training, seed=self.seed, bf16=self.device.type == "cuda")
        trainer = MmeSidTrainer(model, self.data, training, self.device)
        best = max(fit_model(trainer), key=lambda line: line[CHOSEN_BY])
        model.eval()
        return best["epoch"] + 1, {CHOSEN_BY: best[CHOSEN_BY]}

    @torch.no_grad()
    def _ranks(self, model: MmeSid, held_out: HeldOut) -> np.ndarray:
        """The targets' ranks (V,) among all items."""
        with self._half():
            items_ID = model.item_matrix().float()
        ranks = [np.zeros(0, dtype=np.int64)]
        for batch in held_out.batches(length=self.options.training.length, batch_size=RANKED_USERS):
            with self._half():
                vectors_SD = model.last_vectors(
                    self._rows(batch.rows_P), torch.from_numpy(batch.lengths_S)
                )
            seen = (batch.targets_S, batch.seen_Q, batch.seen_lengths_S)
            ranks.append(ranks_of_vectors(vectors_SD.float(), items_ID, *seen))
        return np.concatenate(ranks)

    @torch.no_grad()
    def _spectra(self, model: MmeSid, variant: Variant) -> dict[str, Spectrum]:
        """Of what the LLM reads, of what it scores with, of the projected raw and semantic-ID
        embeddings side by side before the MLP mixes them, and of each family's raw embeddings.
        """
        rows_N = torch.arange(1, self.data.items + 1, device=self.device)
        tables = {
            "input": model.items.inputs(rows_N),
            "matrix": model.item_matrix()[1:],
            "projected": torch.cat(model.items.parts(rows_N), dim=1),
            **{f"raw {one}": torch.from_numpy(self.raw[one][1:]) for one in variant.families},
        }
        return {name: spectrum(table.float()) for name, table in tables.items()}

    @torch.no_grad()
    def _taus(self, model: MmeSid, variant: Variant, ids: Ids) -> dict[str, Any]:
        """Of every family: raw against the quantizer's embeddings, and against the trained ones."""
        found: dict[str, Any] = {"codes_tau": {}, "ids_tau": {}}
        everyone = np.arange(len(self.test.users_V))
        rows_P, lengths_V = last_rows(
            self.test.rows_P, self.test.lengths_V, everyone, self.options.training.length
        )
        for place, family in enumerate(variant.families):
            raw_ID = torch.from_numpy(self.raw[family])
            histories = among(
                (self.raw[family] != 0).any(1), rows_P, lengths_V, self.test.targets_V
            )
            spaces = {
                "codes_tau": ids.embeddings(place, family),
                "ids_tau": model.items.code_vectors(place),
            }
            for kind, space_IZ in spaces.items():
                taus = forgetting(raw_ID.to(self.device), space_IZ.to(self.device), *histories)
                found[kind][family] = taus.plain() | {"per_user": packed(taus.tau_U)}
        return found

    def _rows(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows.astype(np.int64)).to(self.device)

    def _half(self) -> torch.autocast:
        """Products in bfloat16 on CUDA, where attention then needs no padding; weights stay."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"
        )


def world_variants(world: MmeWorld) -> tuple[Variant, ...]:
    """Of its families and the collaborative one, which a run trains itself."""
    others = tuple(family for family in world.raw if family != GIVEN)
    return variants_of((COLLABORATIVE, *others), given=GIVEN in world.raw)
