"""What `crescendo quantize` can be told: method, sizes, balance, collisions, device, workers."""

from dataclasses import dataclass
from typing import Literal

from feature_repo.errors import InputError
from models import collisions
from models.mm_rq_vae import MmRqVaeOptions
from models.pq import PqOptions
from models.psrq import PsrqOptions
from models.quantizers import METHODS, QuantizerOptions
from models.rq_vae_training import RqVaeOptions

DEVICES = ("auto", "cpu", "cuda")
SPLIT_METHODS = ("psrq", "rq_kmeans", "vq", "mm_rq_vae")
"""Methods whose fit several workers can split (`ray_jobs.quantize_workers`, of the last
`ray_jobs.mm_quantize_workers`)."""
NET_METHODS = ("rq_vae", "mm_rq_vae")
"""Methods that train a net, in epochs: their codes cannot be balanced."""


def default_sizes(method: str) -> tuple[int, int]:
    """Levels and codes where none are asked for: those of each method's paper."""
    return (4, 256) if method == "mm_rq_vae" else (3, 128)


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    method: str = "psrq"
    """One of `models.quantizers.METHODS`."""
    modalities: tuple[str, ...] = ("text", "audio")
    levels: int = 3
    """Codes in an ID; `vq` has one."""
    codes: int = 128
    prefix_weight: float | Literal["auto"] = "auto"
    """Of `psrq`: weight of the prefix in the clustering: a number, or `auto` from the data."""
    iterations: int = 25
    """Of the k-means methods: most centroid updates of one level."""
    epochs: int = 100
    """Of `rq_vae` and `mm_rq_vae`: passes over the rows."""
    hidden: tuple[int, ...] = (512, 256)
    """Of `mm_rq_vae`, and the eight below: widths of the encoders' hidden layers."""
    batch_size: int = 1024
    """Rows of one step, of all workers together."""
    reconstruction: str = "mmd"
    """mmd or mse (`models.mm_rq_vae`)."""
    alignment: str = "infonce"
    """What draws modalities together: infonce, mmd or none."""
    anchor: str | None = None
    """Modality with which the others are aligned; None: collaborative, or else the first."""
    distillation_weight: float = 0.0
    """Weight of the term that draws the sum of a track's codes to what was quantized."""
    balanced_start: bool = True
    """Whether books start from balanced clusters."""
    sinkhorn: bool = True
    """Whether a batch shares the codes of the last level evenly."""
    revival: bool = True
    """Whether codes that no track chose come back to life."""
    balance: float | None = None
    """Of the k-means methods: largest share of a code over the even share (`models.balance`)."""
    collisions: str | None = None
    """How IDs that are shared are told apart (`models.collisions`): next_best or extra_level."""
    sample_rows: int | None = None
    """Fit on so many rows, drawn by the seed; then all rows get codes. None: fit on all."""
    preprocess: str = "l2"
    """What is done to each modality's vectors first: none, l2, standard or whiten."""
    align_to: str | None = None
    """Generation from whose books the fit starts and whose codes it keeps (`ray_jobs.align`)."""
    device: str = "auto"
    """Where books are fitted: cpu, cuda, or auto: cuda if there is one."""
    workers: int = 1
    """Of SPLIT_METHODS: Ray Train workers that split the rows of a fit."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method must be one of {METHODS}, got {self.method!r}")
        if not self.modalities:
            raise InputError("modalities must name at least one modality, got none")
        if self.collisions is not None and self.collisions not in collisions.MODES:
            raise InputError(
                f"collisions must be one of {collisions.MODES} or none, got {self.collisions!r}"
            )
        if self.collisions == "next_best" and self.id_levels == 1:
            raise InputError("collisions=next_best needs IDs of 2 codes or more; use extra_level")
        if self.device not in DEVICES:
            raise InputError(f"device must be one of {DEVICES}, got {self.device!r}")
        if self.workers < 1:
            raise InputError(f"workers must be at least 1, got {self.workers}")
        if self.workers > 1 and self.method not in SPLIT_METHODS:
            raise InputError(
                f"workers={self.workers} works for {', '.join(SPLIT_METHODS)}, not {self.method}; "
                "give --workers 1"
            )
        if self.workers > 1 and self.balance is not None:
            raise InputError(
                f"balance={self.balance} needs all rows in one worker, got "
                f"workers={self.workers}: give one of the two"
            )
        if self.sample_rows is not None and self.sample_rows < 1:
            raise InputError(f"sample_rows must be at least 1, got {self.sample_rows}")
        if self.balance is not None and self.method in NET_METHODS:
            raise InputError(
                f"balance={self.balance} works for the k-means methods, not {self.method}"
            )
        if self.balance is not None and self.sample_rows is not None:
            raise InputError(
                f"balance={self.balance} needs all rows in the fit, got "
                f"sample_rows={self.sample_rows}: give one of the two"
            )
        try:
            quantizer = self.quantizer()
            if isinstance(quantizer, MmRqVaeOptions):
                quantizer.anchor_of(self.modalities)
        except ValueError as error:
            raise InputError(str(error)) from error

    @property
    def id_levels(self) -> int:
        """Codes in an ID."""
        book_levels = 1 if self.method == "vq" else self.levels
        return book_levels + (self.collisions == "extra_level")

    def quantizer(self) -> QuantizerOptions:
        """The method's own options. RQ and VQ are special cases of PSRQ."""
        if self.method == "rq_vae":
            return RqVaeOptions(
                levels=self.levels, codes=self.codes, epochs=self.epochs, seed=self.seed
            )
        if self.method == "mm_rq_vae":
            return MmRqVaeOptions(
                levels=self.levels,
                codes=self.codes,
                hidden=self.hidden,
                epochs=self.epochs,
                batch_size=self.batch_size,
                reconstruction=self.reconstruction,
                alignment=self.alignment,
                anchor=self.anchor,
                distillation_weight=self.distillation_weight,
                balanced_start=self.balanced_start,
                sinkhorn=self.sinkhorn,
                revival=self.revival,
                seed=self.seed,
            )
        if self.method == "pq":
            return PqOptions(
                levels=self.levels,
                codes=self.codes,
                iterations=self.iterations,
                balance=self.balance,
                seed=self.seed,
            )
        return PsrqOptions(
            levels=1 if self.method == "vq" else self.levels,
            codes=self.codes,
            prefix_weight=0.0 if self.method == "rq_kmeans" else self.prefix_weight,
            iterations=self.iterations,
            balance=self.balance,
            seed=self.seed,
        )
