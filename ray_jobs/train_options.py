"""Options of `crescendo train`, and which of them say what model comes out."""

from dataclasses import asdict, dataclass, field
from typing import Any

from feature_repo.errors import InputError
from models.ranker_config import MODELS, own_options
from ray_jobs.impressions import ImpressionOptions
from ray_jobs.number_features import check_groups
from ray_jobs.ranker_start import CODE_STARTS

HOW = ("workers", "gpu", "checkpoint_every_s")
"""Options that change how a model is made and not which: a run goes on with others of these."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    model: str = "mcca"
    generation: str | None = None
    start_from: str | None = None
    """Model whose weights a run begins with (`warm_start.py`); random ones when not given."""
    impressions: ImpressionOptions = field(default_factory=ImpressionOptions)
    features: tuple[str, ...] = ()
    """Groups of numbers that the ranker sees beside IDs (`number_features.py`)."""
    epochs: int = 12
    """Passes over the training part at most."""
    patience: int = 2
    """Epochs without a better validation AUC after which a run ends."""
    batch_size: int = 512
    """Rows of one optimizer step, over all workers."""
    learning_rate: float = 3e-3
    bf16: bool = False
    """Products in bfloat16 with float32 sums; weights and moments stay float32."""
    embedding_width: int = 64
    attention_hidden: int = 64
    tower_hidden: tuple[int, ...] = (200, 80)
    family: str | None = None
    """This and the next four belong to one model each (`models/ranker_config.py`)."""
    top_k: int | None = None
    search: str | None = None
    heads: int | None = None
    layers: int | None = None
    code_start: str = "random"
    """How code tables begin: `random`, or from the codebooks' `centroids`."""
    workers: int = 1
    """Of Ray Train; 0: none, the driver trains (`worker_fit.py`)."""
    gpu: bool | None = None
    """One CUDA device a worker; by default where there is one for each."""
    checkpoint_every_s: float = 60.0
    """Seconds between two checkpoints at least; longer where they take over 1% of the time."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"model must be one of {MODELS}, got {self.model!r}")
        sizes = ("epochs", "patience", "batch_size", "embedding_width", "attention_hidden")
        for name, least in (*((size, 1) for size in sizes), ("workers", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.tower_hidden or min(self.tower_hidden) < 1:
            raise InputError(f"tower_hidden must be widths of at least 1, got {self.tower_hidden}")
        if self.batch_size < self.workers:
            raise InputError(
                f"batch_size must be at least the {self.workers} workers, got {self.batch_size}"
            )
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not self.checkpoint_every_s >= 0:
            raise InputError(
                f"checkpoint_every_s must be at least 0, got {self.checkpoint_every_s}"
            )
        check_groups(self.features)
        if self.code_start not in CODE_STARTS:
            raise InputError(f"code_start must be one of {CODE_STARTS}, got {self.code_start!r}")
        if self.start_from is not None and self.code_start != "random":
            raise InputError(
                f"code_start must be random with start_from, which brings its own code tables, "
                f"got {self.code_start!r}"
            )
        try:
            self.own()
        except ValueError as error:
            raise InputError(str(error)) from error

    def own(self) -> dict[str, Any]:
        """The options that belong to one model, the unset ones at its defaults."""
        return own_options(self.model, asdict(self))

    def what(self) -> dict[str, Any]:
        """The options that decide which model comes out: its id is made of them."""
        return {name: value for name, value in asdict(self).items() if name not in HOW}
