"""LoRA by peft inside our Llama: put in, fast, named for the artifact.

    r = 8, alpha = 16, dropout .05 on gate, up and down projections (MME-SID, paper section 3)

Adapters are float32 beside a base in any type: their steps are smaller than bfloat16's. The
adapter's file has the names that `merge_lora` and peft's `PeftModel` of a `LlamaModel` read.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from models.lora_linear import use_fast_lora

ADAPTER = "default"
TARGETS = ("gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def peft_config(self) -> Any:
        """As peft's `LoraConfig`, which is what adapter_config.json holds."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(TARGETS),
            bias="none",
        )

    def plain_config(self) -> dict[str, Any]:
        """What adapter_config.json holds, as peft reads it."""
        config: dict[str, Any] = self.peft_config().to_dict()
        config["target_modules"] = sorted(config["target_modules"])  # peft keeps a set
        return config


def add_lora(backbone: nn.Module, settings: LoraSettings, *, fast: bool = True) -> None:
    """Freezes the backbone and puts new adapters in (seed torch before).

    `fast` = False keeps peft's own forward everywhere.
    """
    from peft import inject_adapter_in_model

    backbone.requires_grad_(False)
    inject_adapter_in_model(settings.peft_config(), backbone, adapter_name=ADAPTER)
    for name, parameter in backbone.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    if fast:
        use_fast_lora(backbone, ADAPTER)


def adapter_tensors(backbone: nn.Module) -> dict[str, Tensor]:
    """The adapters' parameters under the names of peft's files, on the host."""
    return {
        f"{PREFIX}{name.replace(f'.{ADAPTER}.weight', '.weight')}": parameter.detach().cpu()
        for name, parameter in backbone.named_parameters()
        if "lora_" in name
    }
