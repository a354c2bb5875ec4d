"""Options of `crescendo train-mme-sid`, and which of them say what model comes out."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from feature_repo.errors import InputError
from models.mme_sid_training import MmeSidTraining
from ray_jobs.mme_sid_lora import LoraSettings

CODE_STARTS = ("quantizer", "random")
HOW = (
    "base",
    "workers",
    "gpu",
    "checkpoint_every_s",
    "accumulate",
    "recompute",
    "compiled",
    "ranked_users",
)
"""Options that change how a model is made and not which; of the base, its content counts."""


@dataclass(frozen=True, kw_only=True)
class TrainMmeSidOptions(MmeSidTraining):
    base: Path
    """Folder of a Llama-shaped checkpoint: config.json and safetensors."""
    generation: str | None = None
    """Generation whose IDs the model reads; the newest when not given."""
    modalities: tuple[str, ...] = ()
    """Those of the generation when none are named."""
    code_start: str = "quantizer"
    """How semantic-ID embeddings begin: the quantizer's own, or random."""
    code_width: int = 64
    """Of random code embeddings, and of projected raw ones; the quantizer's have their own."""
    hidden: int = 512
    temperature: float = 1e-3
    consistency: float = 0.0
    """Weight of the distance between semantic-ID embeddings and the quantizer's."""
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    four_bit: bool = False
    """The base in 4-bit NF4 by bitsandbytes, while it is trained."""
    recompute: bool = False
    """Activations are computed again for gradients: less memory, a third more time."""
    compiled: bool = False
    """The decoder's layers compiled: a minute at the start, faster steps in less memory."""
    workers: int = 1
    """Of Ray Train; 0: none, the driver trains (`worker_fit.py`)."""
    gpu: bool | None = None
    """One CUDA device a worker; by default where there is one for each."""
    checkpoint_every_s: float = 60.0
    """Seconds between two checkpoints at least; longer where they take over 1% of the time."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
            self.lora()
        except ValueError as error:
            raise InputError(str(error)) from error
        if self.code_start not in CODE_STARTS:
            raise InputError(f"code_start must be one of {CODE_STARTS}, got {self.code_start!r}")
        if self.consistency and self.code_start == "random":
            raise InputError(
                f"consistency must be 0 with random code embeddings, got {self.consistency}"
            )
        if self.compiled and self.four_bit:
            raise InputError("compiled must be left out with four_bit, got both")
        for name, least in (("code_width", 1), ("hidden", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.checkpoint_every_s >= 0:
            raise InputError(
                f"checkpoint_every_s must be at least 0, got {self.checkpoint_every_s}"
            )

    def lora(self) -> LoraSettings:
        return LoraSettings(rank=self.lora_rank, alpha=self.lora_alpha, dropout=self.lora_dropout)

    def training(self) -> MmeSidTraining:
        """The part that the trainer takes."""
        return MmeSidTraining(**{f.name: getattr(self, f.name) for f in fields(MmeSidTraining)})

    def what(self) -> dict[str, Any]:
        """The options that decide which model comes out: its id is made of them."""
        names = [field.name for field in fields(self) if field.name not in HOW]
        return {name: getattr(self, name) for name in names}
