"""`baichuan`: text vectors by Baichuan2-7B-Base, from the folder that `convert-encoder` wrote.

The mean of the states under the final norm over the text's tokens, through `models.llama`. It is a
base language model, not one trained to embed: its vectors are features for a ranker or a
quantizer that whitens (`--preprocess whiten`), and all point roughly one way as they are.
"""

from pathlib import Path

from ray_jobs.encoders.converted import read_converted
from ray_jobs.encoders.text import TextEncoder


def baichuan_encoder(folder: Path, *, max_tokens: int, dtype: str) -> TextEncoder:
    """Checks every file of the folder against its manifest; ArtifactError if one was changed."""
    manifest = read_converted(folder, "baichuan")
    return TextEncoder(
        name="baichuan",
        folder=folder,
        max_tokens=max_tokens,
        dtype=dtype,
        sha256s=manifest.files,
    )
