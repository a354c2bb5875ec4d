"""From the name of an encoder and the options of `embed` to the encoder.

    spectral, vectors          nothing to load
    mert, baichuan             `--encoder-path`: a folder that `convert-encoder` wrote
    hf-audio, hf-text          `--encoder-path`: any local HuBERT, wav2vec2; BERT, Llama, ...
    a package's name           an installed package that carries one Hugging Face text encoder

Without a GPU encoders compute in float32. On one, sound networks compute in bfloat16 and text
networks in float16: through the 32 layers of a 7B Llama bfloat16 ends at a cosine of 0.9997 to
float32, float16 at 0.999996 for 2% of the speed (`benchmarks/encoders.py`). What overflows there
becomes an error row. The type is part of the encoder's id.
"""

import re

import pyarrow as pa

from feature_repo.errors import InputError
from feature_repo.ray_start import names_a_cluster
from feature_repo.workspace import Workspace
from ray_jobs.embed_options import EmbedOptions
from ray_jobs.encoders.baichuan import baichuan_encoder
from ray_jobs.encoders.hf_audio import AudioEncoder
from ray_jobs.encoders.mert import mert_encoder
from ray_jobs.encoders.pipeline import Encoder
from ray_jobs.encoders.spectral import SpectralEncoder
from ray_jobs.encoders.text import TextEncoder, packaged_model
from ray_jobs.encoders.vectors import VectorsEncoder
from ray_jobs.ray_session import ray_session

OF_A_FOLDER = ("mert", "baichuan", "hf-audio", "hf-text")
AUDIO = ("mert", "hf-audio")


def make_encoder(workspace: Workspace, options: EmbedOptions, tracks: pa.Schema) -> Encoder:
    """The encoder, its files checked. InputError for options that do not go together."""
    name = options.encoder
    if (name in OF_A_FOLDER) != (options.encoder_path is not None):
        raise InputError(
            f"encoder={name!r}, encoder_path={options.encoder_path}: "
            f"expected a path with {', '.join(OF_A_FOLDER)}, and none with any other encoder"
        )
    if options.layers is not None and name not in AUDIO:
        raise InputError(f"layers={options.layers}: only {' and '.join(AUDIO)} have the option")
    root = workspace.root.absolute()
    if name == "spectral":
        return SpectralEncoder(root=root)
    if name == "vectors":
        return VectorsEncoder(options.modality, tracks)
    on_gpu = _on_gpu(options)
    dtype = "float32" if not on_gpu else "bfloat16" if name in AUDIO else "float16"
    if options.encoder_path is None:
        return TextEncoder(
            name=name, folder=packaged_model(name), max_tokens=options.max_tokens, dtype=dtype
        )
    folder = options.encoder_path.absolute()
    own = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")
    tokens = options.max_tokens
    if name == "mert":
        return mert_encoder(folder, root=root, layers=options.layers, dtype=dtype)
    if name == "baichuan":
        return baichuan_encoder(folder, max_tokens=tokens, dtype=dtype)
    if name == "hf-audio":
        return AudioEncoder(name=own, folder=folder, root=root, layers=options.layers, dtype=dtype)
    return TextEncoder(name=own, folder=folder, max_tokens=tokens, dtype=dtype)


def _on_gpu(options: EmbedOptions) -> bool:
    """Whether the model's actors will have GPUs: the cluster's, which the driver need not have."""
    if options.gpu is not None:
        return options.gpu
    import ray

    if ray.is_initialized() or names_a_cluster():
        with ray_session():
            return ray.cluster_resources().get("GPU", 0) >= 1
    import torch

    return torch.cuda.is_available()
