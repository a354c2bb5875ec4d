"""Sequential recommendation: SASRec, MME-SID, its candidates, its diagnostics."""

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.commands.options import (
    BatchSize,
    Epochs,
    Generation,
    Gpu,
    LearningRate,
    Length,
    Seeds,
    Workers,
    answer,
    names,
)


def sasrec(
    context: typer.Context,
    length: Annotated[int, typer.Option(help="Newest listens of a history that it reads.")] = 50,
    loss: Annotated[str, typer.Option(help="ce, over all tracks, or bce, the paper's.")] = "ce",
    sampled_items: Annotated[
        int | None, typer.Option(help="ce: tracks drawn a step, for a catalogue of millions.")
    ] = None,
    width: Annotated[int, typer.Option(help="Dims of a vector.")] = 64,
    layers: Annotated[int, typer.Option(help="Blocks.")] = 2,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 1,
    dropout: Annotated[float, typer.Option(help="Share of values dropped out.")] = 0.2,
    epochs: Epochs = 200,
    patience: Annotated[
        int, typer.Option(help="Epochs without a better validation nDCG@10 before it ends.")
    ] = 5,
    batch_size: Annotated[int, typer.Option(help="Users of one step, over all workers.")] = 128,
    learning_rate: LearningRate = 1e-3,
    workers: Workers = 1,
    gpu: Gpu = None,
    checkpoint_every_s: Annotated[
        float, typer.Option(help="Seconds between two checkpoints, at least.")
    ] = 60.0,
    seed: int = 0,
) -> None:
    """Collaborative embeddings: SASRec on the sequences in the feature store."""
    from ray_jobs.sasrec import SasRecRunOptions, sasrec

    options = SasRecRunOptions(
        length=length,
        loss=loss,
        sampled_items=sampled_items,
        width=width,
        layers=layers,
        heads=heads,
        dropout=dropout,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        workers=workers,
        gpu=gpu,
        checkpoint_every_s=checkpoint_every_s,
        seed=seed,
    )
    answer(sasrec(context.obj, options))


def train_mme_sid(
    context: typer.Context,
    base: Annotated[
        Path, typer.Option(help="Folder of a Llama-shaped checkpoint: config.json, safetensors.")
    ],
    generation: Generation = None,
    modalities: Annotated[
        str, typer.Option(help="Comma-separated; those of the generation when not given.")
    ] = "",
    code_start: Annotated[
        str, typer.Option(help="Semantic-ID embeddings begin from the quantizer, or random.")
    ] = "quantizer",
    code_width: Annotated[int, typer.Option(help="Of random code embeddings.")] = 64,
    hidden: Annotated[int, typer.Option(help="Of the MLP that fuses the modalities.")] = 512,
    consistency: Annotated[
        float, typer.Option(help="Weight of the distance to the quantizer's embeddings.")
    ] = 0.0,
    length: Length = 50,
    epochs: Epochs = 4,
    batch_size: BatchSize = 64,
    accumulate: Annotated[
        int, typer.Option(help="Passes of a step: less memory, the same gradients.")
    ] = 1,
    learning_rate: LearningRate = 3e-4,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 8,
    lora_alpha: Annotated[int, typer.Option(help="Their scale is alpha / rank.")] = 16,
    lora_dropout: Annotated[float, typer.Option(help="Of the adapters' inputs.")] = 0.05,
    bf16: Annotated[bool, typer.Option("--bf16", help="Base and products in bfloat16.")] = False,
    four_bit: Annotated[
        bool, typer.Option("--four-bit", help="Base in 4-bit NF4, by bitsandbytes.")
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Less memory, a third more time.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compile the layers: a minute, then faster.")
    ] = False,
    negatives: Annotated[
        int, typer.Option(help="Items drawn a batch where the catalogue is above 200,000.")
    ] = 16_384,
    workers: Workers = 1,
    gpu: Gpu = None,
    checkpoint_every_s: Annotated[
        float, typer.Option(help="Seconds between two checkpoints, at least.")
    ] = 60.0,
    seed: int = 0,
) -> None:
    """MME-SID: a language model with LoRA over items, on sequences from Feast, by Ray Train."""
    from ray_jobs.mme_sid import train_mme_sid
    from ray_jobs.mme_sid_options import TrainMmeSidOptions

    options = TrainMmeSidOptions(
        base=base,
        generation=generation,
        modalities=names(modalities) if modalities else (),
        code_start=code_start,
        code_width=code_width,
        hidden=hidden,
        consistency=consistency,
        length=length,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        bf16=bf16,
        four_bit=four_bit,
        recompute=recompute,
        compiled=compiled,
        negatives=negatives,
        workers=workers,
        gpu=gpu,
        checkpoint_every_s=checkpoint_every_s,
        seed=seed,
    )
    answer(train_mme_sid(context.obj, options))


def score_users(
    context: typer.Context,
    model_id: Annotated[str, typer.Option(help="Trained mme_sid model.")],
    top: Annotated[int, typer.Option(help="Candidates of each user.")] = 200,
    actors: Annotated[int, typer.Option(help="Processes; with GPUs, one each.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Users of one pass.")] = 256,
) -> None:
    """Scores the catalogue for every user and publishes the best tracks as a feature view."""
    from ray_jobs.score_users import ScoreUsersOptions, score_users

    options = ScoreUsersOptions(model_id=model_id, top=top, actors=actors, batch_size=batch_size)
    answer(score_users(context.obj, options))


def collapse(
    context: typer.Context,
    model_id: Annotated[str | None, typer.Option(help="A trained mme_sid model.")] = None,
    generation: Annotated[str | None, typer.Option(help="Or a generation of mm_rq_vae.")] = None,
) -> None:
    """Spectrum and effective rank of every table of a model or a generation."""
    from ray_jobs.mme_diagnostics import DiagnosticsOptions, collapse
    from ray_jobs.report.diagnostics_page import print_collapse

    options = DiagnosticsOptions(model_id=model_id, generation=generation)
    result, spectra = collapse(context.obj, options)
    print_collapse(spectra)
    answer(result)


def forgetting(
    context: typer.Context,
    model_id: Annotated[str | None, typer.Option(help="A trained mme_sid model.")] = None,
    generation: Annotated[str | None, typer.Option(help="Or a generation of mm_rq_vae.")] = None,
    length: Annotated[int, typer.Option(help="Newest listens, for a generation.")] = 50,
) -> None:
    """Kendall's tau of every listener between original and learned orders."""
    from ray_jobs.mme_diagnostics import DiagnosticsOptions, forgotten
    from ray_jobs.report.diagnostics_page import print_forgetting

    options = DiagnosticsOptions(model_id=model_id, generation=generation, length=length)
    result, taus = forgotten(context.obj, options)
    print_forgetting(taus)
    answer(result)


def mme_study(
    context: typer.Context,
    modalities: Annotated[str, typer.Option(help="Beside collaborative.")] = "text,audio",
    seeds: Seeds = 3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """MME-SID's claims on this workspace: variants x seeds, with paired tests."""
    from ray_jobs.mme_study import MmeStudyOptions, mme_study
    from ray_jobs.report.mme_tables import print_claims

    options = MmeStudyOptions(modalities=names(modalities), seeds=seeds, device=device)
    result, answers = mme_study(context.obj, options)
    print_claims(answers)
    answer(result)
