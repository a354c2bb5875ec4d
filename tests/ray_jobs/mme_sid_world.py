"""A published world in circles with `mm_rq_vae` codes, and a small Llama of transformers."""

from pathlib import Path

import torch

from feature_repo.workspace import Workspace
from ray_jobs.mme_sid_options import TrainMmeSidOptions
from ray_jobs.publish import publish
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.sequences import SequenceOptions, sequences
from tests.embedded import clustered, write_catalogue
from tests.event_logs import write_events
from tests.ray_jobs.sequence_world import LENGTH, TRACKS, UNHEARD, circle_log

DIMS = {"text": 6, "audio": 5}
LEVELS, CODES = 2, 6


def write_llama(folder: Path, *, shards: bool = False, **changes) -> Path:
    """A LlamaForCausalLM as transformers saves it, random; small shards on request."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 11,
        "initializer_range": 0.1,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes | changes))
    model.save_pretrained(folder, max_shard_size="10KB" if shards else "1GB")
    return folder


def published_world(folder: Path) -> tuple[Workspace, Path]:
    """The workspace (one track lacks its audio), and the base beside it."""
    workspace = Workspace(folder / "workspace")
    write_catalogue(workspace, clustered(TRACKS + UNHEARD, DIMS), without={"audio": {3}})
    write_events(workspace, circle_log(repeating=5))
    quantize(
        workspace,
        QuantizeOptions(
            method="mm_rq_vae",
            modalities=tuple(DIMS),
            levels=LEVELS,
            codes=CODES,
            hidden=(8,),
            epochs=3,
            device="cpu",
        ),
    )
    sequences(workspace, SequenceOptions(length=LENGTH))
    publish(workspace)
    return workspace, write_llama(folder / "base", shards=True)


def small(base: Path, **changes) -> TrainMmeSidOptions:
    settings = {
        "base": base,
        "epochs": 6,
        "batch_size": 16,
        "length": LENGTH,
        "learning_rate": 1e-2,
        "hidden": 16,
        "lora_rank": 4,
        "lora_alpha": 8,
        "checkpoint_every_s": 0.0,
        "workers": 0,
    }
    return TrainMmeSidOptions(**settings | changes)
