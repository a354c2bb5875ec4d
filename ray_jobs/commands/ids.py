"""From source data to semantic IDs: ingest, embed, quantize, assign, quality."""

from pathlib import Path
from typing import Annotated, Any

import typer

from feature_repo.errors import InputError
from ray_jobs.commands.options import (
    Generation,
    Mapping,
    MaxRejected,
    Source,
    SourcePath,
    answer,
    in_this_workspace,
    names,
    whole_numbers,
)


def ingest(
    context: typer.Context,
    source: Source,
    path: SourcePath,
    mapping: Mapping = None,
    max_rejected_share: MaxRejected = 0.05,
) -> None:
    """Source data -> the contract tables of tracks and events."""
    from ray_jobs.ingest import IngestOptions, ingest

    options = IngestOptions(
        source=source, path=path, mapping=mapping, max_rejected_share=max_rejected_share
    )
    answer(ingest(context.obj, options))


def embed(
    context: typer.Context,
    modality: Annotated[str, typer.Option(help="text, audio or another name.")],
    encoder: Annotated[
        str,
        typer.Option(
            help="spectral, vectors, mert, baichuan, hf-audio, hf-text, or an installed package "
            "that carries a text encoder."
        ),
    ],
    encoder_path: Annotated[
        Path | None, typer.Option(help="Local folder of mert, baichuan, hf-audio or hf-text.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Text: tokens of a track that are read.")] = 256,
    layers: Annotated[
        str | None,
        typer.Option(
            help="mert, hf-audio: states side by side, such as 6 or 0,6,12; the middle one when "
            "not given."
        ),
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Processes of the model stage.")] = None,
    decoders: Annotated[int | None, typer.Option(help="Processes that decode or tokenise.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Tracks that go through the stages together.")
    ] = None,
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--cpu", help="One GPU an actor; by default where there is one."),
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Do the tracks again that failed.")
    ] = False,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Measure the stages on a sample; write nothing.")
    ] = False,
) -> None:
    """Embedding vectors of the tracks that have none yet or have changed."""
    from ray_jobs.embed import EmbedOptions, embed
    from ray_jobs.embed_benchmark import benchmark as measure

    options = EmbedOptions(
        modality=modality,
        encoder=encoder,
        encoder_path=encoder_path,
        max_tokens=max_tokens,
        layers=None if layers is None else whole_numbers("layers", layers),
        actors=actors,
        decoders=decoders,
        batch_size=batch_size,
        gpu=gpu,
        retry_errors=retry_errors,
    )
    result = measure(context.obj, options) if benchmark else embed(context.obj, options)
    if "retry" in result:
        result["retry"] = in_this_workspace(result["retry"])
    answer(result)


def convert_encoder(
    kind: Annotated[str, typer.Option(help="mert or baichuan.")],
    source: Annotated[Path, typer.Option("--from", help="Folder of the model as published.")],
    target: Annotated[Path, typer.Option("--to", help="Folder to write.")],
) -> None:
    """Published encoder weights -> safetensors and a plain config, without remote code."""
    from ray_jobs.convert_encoder import ConvertOptions, convert_encoder

    answer(convert_encoder(ConvertOptions(kind=kind, source=source, target=target)))


def quantize(
    context: typer.Context,
    method: Annotated[
        str, typer.Option(help="psrq, rq_kmeans, vq, pq, rq_vae or mm_rq_vae.")
    ] = "psrq",
    modalities: Annotated[str, typer.Option(help="Comma-separated.")] = "text,audio",
    levels: Annotated[int | None, typer.Option(help="Codes in an ID; 3, of mm_rq_vae 4.")] = None,
    codes: Annotated[
        int | None, typer.Option(help="Codes in a codebook; 128, of mm_rq_vae 256.")
    ] = None,
    prefix_weight: Annotated[
        str, typer.Option(help="psrq: auto or a number; 1 is the paper.")
    ] = "auto",
    epochs: Annotated[int, typer.Option(help="rq_vae, mm_rq_vae: passes over the tracks.")] = 100,
    hidden: Annotated[
        str, typer.Option(help="mm_rq_vae: widths of hidden layers; the paper 4096,4096,4096.")
    ] = "512,256",
    batch_size: Annotated[
        int, typer.Option(help="mm_rq_vae: tracks of one step, of all workers together.")
    ] = 1024,
    reconstruction: Annotated[str, typer.Option(help="mm_rq_vae: mmd (the paper) or mse.")] = "mmd",
    alignment: Annotated[
        str, typer.Option(help="mm_rq_vae: infonce (the paper), mmd or none.")
    ] = "infonce",
    anchor: Annotated[
        str | None,
        typer.Option(
            help="mm_rq_vae: modality that others are aligned with; collaborative, or the first."
        ),
    ] = None,
    distillation_weight: Annotated[
        float,
        typer.Option(help="mm_rq_vae: draws the sum of a track's codes to what was quantized."),
    ] = 0.0,
    balanced_start: Annotated[
        bool, typer.Option(help="mm_rq_vae: books start from balanced clusters.")
    ] = True,
    sinkhorn: Annotated[
        bool, typer.Option(help="mm_rq_vae: a batch shares the last level's codes evenly.")
    ] = True,
    revival: Annotated[
        bool, typer.Option(help="mm_rq_vae: codes that no track chose come back to life.")
    ] = True,
    balance: Annotated[
        float | None,
        typer.Option(
            help="Largest share of a code over the even share; not for rq_vae and mm_rq_vae."
        ),
    ] = None,
    collisions: Annotated[
        str | None,
        typer.Option(help="Tell apart tracks that share an ID: next_best or extra_level."),
    ] = None,
    sample_rows: Annotated[
        int | None, typer.Option(help="Fit on so many tracks, drawn by the seed.")
    ] = None,
    align_to: Annotated[
        str | None,
        typer.Option(help="Generation to start from, and whose codes to keep where it can."),
    ] = None,
    preprocess: Annotated[str, typer.Option(help="none, l2, standard or whiten.")] = "l2",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[
        int,
        typer.Option(help="psrq, rq_kmeans, vq, mm_rq_vae: Ray Train workers that share the fit."),
    ] = 1,
    seed: int = 0,
) -> None:
    """Fits the codebooks of all families and assigns a generation of semantic IDs."""
    from ray_jobs.quantize import quantize
    from ray_jobs.quantize_options import QuantizeOptions, default_sizes

    try:
        weight: Any = prefix_weight if prefix_weight == "auto" else float(prefix_weight)
    except ValueError as error:
        raise InputError(
            f"prefix_weight must be auto or a number, got {prefix_weight!r}"
        ) from error
    usual_levels, usual_codes = default_sizes(method)
    options = QuantizeOptions(
        method=method,
        modalities=names(modalities),
        levels=usual_levels if levels is None else levels,
        codes=usual_codes if codes is None else codes,
        prefix_weight=weight,
        epochs=epochs,
        hidden=whole_numbers("hidden", hidden),
        batch_size=batch_size,
        reconstruction=reconstruction,
        alignment=alignment,
        anchor=anchor,
        distillation_weight=distillation_weight,
        balanced_start=balanced_start,
        sinkhorn=sinkhorn,
        revival=revival,
        balance=balance,
        collisions=collisions,
        sample_rows=sample_rows,
        align_to=align_to,
        preprocess=preprocess,
        device=device,
        workers=workers,
        seed=seed,
    )
    answer(quantize(context.obj, options))


def assign(
    context: typer.Context,
    generation: Generation = None,
    error_ratio: Annotated[
        float, typer.Option(help="Warn if new tracks cost so many times what the fit's did.")
    ] = 1.25,
    tail_share: Annotated[
        float, typer.Option(help="Warn if so many cost more than 99% of the fit's.")
    ] = 0.05,
    usage_shift: Annotated[
        float, typer.Option(help="Warn if code usage differs by so many bits beyond chance.")
    ] = 0.05,
    least_tracks: Annotated[int, typer.Option(help="New tracks from which drift is judged.")] = 100,
) -> None:
    """IDs for tracks that have none, from a generation's frozen codebooks; warns of drift."""
    from ray_jobs.assign import assign
    from ray_jobs.drift import DriftLimits

    limits = DriftLimits(
        error_ratio=error_ratio,
        tail_share=tail_share,
        usage_shift=usage_shift,
        least_tracks=least_tracks,
    )
    answer(assign(context.obj, generation, limits))


def quality(
    context: typer.Context,
    generation: Generation = None,
    curve: Annotated[
        str | None,
        typer.Option(help="Prefix weights to compare, comma-separated, beside 0, 1 and auto."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Tracks that the comparison is made on, at most.")] = (
        20_000
    ),
) -> None:
    """How good a generation's IDs are, beside RQ and the literal PSRQ: a table and a page."""
    from ray_jobs.quality import QualityOptions, quality
    from ray_jobs.report.quality_findings import print_quality

    try:
        weights = None if curve is None else tuple(float(weight) for weight in names(curve))
    except ValueError as error:
        raise InputError(f"curve must be numbers, comma-separated, got {curve!r}") from error
    options = QualityOptions(generation=generation, curve=weights, rows=rows)
    result, families = quality(context.obj, options)
    print_quality(families)
    answer(result)
