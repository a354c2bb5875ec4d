"""A family's codebook as files: the book, and the preprocessing of the vectors that it takes.

Written by `crescendo quantize`, read by `crescendo assign` and whoever gives items their codes:

    codebooks/<codebook_id>/codebook.safetensors   the book's tensors (names: `models.quantizers`),
                                                   the preprocessing's under `<modality>.<tensor>`
    codebooks/<codebook_id>/manifest.json          info: `settings` of the book, `family`,
                                                   `preprocess` (mode of each modality, in the
                                                   order in which the book's dims hold them)

`codebook_id` is made from the tensors, the settings and the encoders' ids.
"""

from collections.abc import Mapping
from typing import Any

from safetensors.torch import load_file, save, save_file
from torch import Tensor

from feature_repo.artifacts import (
    Manifest,
    content_id,
    is_whole,
    read_manifest,
    write_artifact,
)
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from models.preprocess import Preprocess
from models.quantizers import Quantizer, load_quantizer

CODEBOOK_FILE = "codebook.safetensors"
KIND = "codebook"


def write_codebook(
    workspace: Workspace,
    family: str,
    book: Quantizer,
    *,
    preprocess: Mapping[str, Preprocess],
    encoder_ids: Mapping[str, str],
    options: Mapping[str, Any],
    info: Mapping[str, Any],
) -> str:
    """Writes the artifact, unless it is there and whole, and returns its id.

    `preprocess` and `encoder_ids` by modality: one, or for the joint family all, in the order of
    the joint vector. `options` are recorded as they are, `info` beside what is above.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in book.tensors().items()}
    for modality, fitted in preprocess.items():
        for name, tensor in fitted.tensors().items():
            tensors[f"{modality}.{name}"] = tensor.cpu().contiguous()
    modes = {modality: fitted.mode for modality, fitted in preprocess.items()}
    settings = book.settings()
    codebook_id = content_id("codebook", save(tensors), settings, modes, dict(encoder_ids))
    folder = workspace.codebooks / codebook_id
    if is_whole(folder, kind=KIND, made_by="quantize"):
        return codebook_id  # what it says of the rows of its fit stays true of them
    manifest = Manifest(
        kind=KIND,
        id=codebook_id,
        parents={"embeddings": dict(encoder_ids)},
        options=dict(options),
        info={"settings": settings, "family": family, "preprocess": modes, **info},
    )
    with write_artifact(folder, manifest) as partial:
        save_file(tensors, partial / CODEBOOK_FILE)
    return codebook_id


def read_codebook(
    workspace: Workspace, codebook_id: str
) -> tuple[Quantizer, dict[str, Preprocess], Manifest]:
    """The book, the preprocessing of each modality, the manifest.

    ArtifactError where the artifact is missing, changed, or not of this version's format.
    """
    folder = workspace.codebooks / codebook_id
    manifest = read_manifest(folder, kind=KIND, made_by="quantize")
    tensors = load_file(folder / CODEBOOK_FILE)
    try:
        modes: dict[str, str] = manifest.info["preprocess"]
        preprocess = {
            modality: Preprocess.from_tensors(mode, _under(tensors, f"{modality}."))
            for modality, mode in modes.items()
        }
        of_the_book = {name: tensor for name, tensor in tensors.items() if "." not in name}
        book = load_quantizer(of_the_book, manifest.info["settings"])
    except (ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"codebook {codebook_id} is not one that this version reads ({error}); "
            "run `crescendo quantize` to make one"
        ) from error
    return book, preprocess, manifest


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
