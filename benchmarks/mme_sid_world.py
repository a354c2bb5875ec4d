"""What `benchmarks/mme_sid.py` measures on: a Llama-3-8B-shaped MME-SID with random weights.

Weights, tables and batches are made on the device; nothing is read.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from models.llama import Llama
from models.llama_sizes import LlamaSizes
from models.matmul_speed import matmul_flops_per_s
from models.mme_sid import MmeSid
from models.mme_sid_items import MmeSidConfig

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "vocab_size": 128_256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}
TINY = LLAMA_8B | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 50,
}
LENGTH = 50
FAMILIES = {"collaborative": 64, "text": 4096, "audio": 768}


class World:
    """The device, the model's parts, and the matrix-product floor that all is held against."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.config = (TINY if options.tiny else LLAMA_8B) | {}
        if options.layers is not None:
            self.config["num_hidden_layers"] = options.layers
        self.sizes = LlamaSizes.from_config(self.config)
        self.items = options.items
        self.dtype = torch.bfloat16
        self.steps = 3 if options.quick else 8
        self.profiled: bool = options.profile
        self.flops_per_s = matmul_flops_per_s(self.device, self.dtype)

    def weights(self) -> dict[str, Tensor]:
        with torch.device("meta"):
            shapes = {name: p.shape for name, p in Llama(self.sizes).named_parameters()}
        torch.manual_seed(0)
        tensors = {}
        for name, shape in shapes.items():
            # Norms at 1; matrices so that outputs are as large as inputs, over sqrt(2 layers).
            if len(shape) == 1:
                tensors[name] = torch.ones(shape, dtype=self.dtype, device=self.device)
                continue
            std = (shape[1] * 2 * self.sizes.layers) ** -0.5
            tensors[name] = torch.empty(shape, dtype=self.dtype, device=self.device)
            tensors[name].normal_(std=std)
        return tensors

    def model(self, backbone: Llama) -> MmeSid:
        config = MmeSidConfig(
            families=tuple(FAMILIES),
            dims=tuple(FAMILIES.values()),
            levels=4,
            codes=256,
            code_width=64,
        )
        generator = torch.Generator().manual_seed(0)
        rows = self.items + 1
        codes_IFL = torch.randint(0, 256, (rows, len(FAMILIES), 4), generator=generator)
        raw = {
            name: torch.randn(rows, dim, device=self.device, dtype=torch.float32)
            for name, dim in FAMILIES.items()
        }
        counts_I = (1e6 / torch.arange(1, rows + 1)).long()
        model = MmeSid(
            backbone,
            config,
            raw=raw,
            codes_IFL=codes_IFL,
            code_embeddings=None,
            counts_I=counts_I,
        )
        return model.to(self.device)

    def batch(
        self, sequences: int, seed: int, mixed: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        lengths_S = torch.full((sequences,), LENGTH)
        if mixed:
            lengths_S = torch.randint(5, LENGTH + 1, (sequences,), generator=generator)
        size = (2, int(lengths_S.sum()))
        rows = torch.randint(1, self.items + 1, size, generator=generator)
        rows_P, targets_P = rows.to(self.device).unbind(0)
        return rows_P, lengths_S, targets_P

    def seconds(self, step: Callable[[], object], warm_up: int = 2) -> float:
        """The median of the steps, each waited for."""
        for _ in range(warm_up):
            step()
        times = []
        for _ in range(self.steps):
            wait(self.device)
            started = time.perf_counter()
            step()
            wait(self.device)
            times.append(time.perf_counter() - started)
        if self.profiled:
            self._profile(step)
        return statistics.median(times)

    def _profile(self, step: Callable[[], object]) -> None:
        """Prints the kernels that one step's time goes to."""
        from torch.profiler import ProfilerActivity, profile

        activity = ProfilerActivity.CUDA if self.device.type == "cuda" else ProfilerActivity.CPU
        with profile(activities=[activity]) as found:
            step()
            wait(self.device)
        by = f"self_{self.device.type}_time_total"
        print(found.key_averages().table(sort_by=by, row_limit=24, max_name_column_width=70))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
