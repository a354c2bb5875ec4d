"""Generations that a study compares: found or made, and registered for training alone.

Every one is made from the options of a base generation, so that they differ in what is asked and in
nothing else. One that exists is used as it is: its codebooks are not fitted again. They are
registered in Feast for offline reading, which is what a training set does; nothing of them goes
online (the view is no online view, so `crescendo materialize` leaves it out too), and the newest
generation, which other commands take when none is named, stays the newest.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import (
    MANIFEST,
    Manifest,
    content_id,
    newest,
    read_manifest,
    write_artifact,
    write_json,
)
from feature_repo.errors import ArtifactError, InputError
from feature_repo.scratch import only_writer
from feature_repo.workspace import Workspace
from ray_jobs.assign import complete
from ray_jobs.embed import KIND as EMBEDDING
from ray_jobs.generation_table import IDS_FILE
from ray_jobs.progress import log, step
from ray_jobs.publish import write_semantic_ids
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions

HOW = ("device", "workers")
"""Options that say how a generation is fitted and not which one it is."""
REPEATED = "repeat_level_1"


def base_generation(workspace: Workspace, generation_id: str | None) -> Manifest:
    """The generation whose options the others share: the newest when not given.

    InputError for one that `quantize` did not make.
    """
    if generation_id is None:
        generation_id = newest(workspace.generations, kind="generation", made_by="quantize").id
    base = read_manifest(
        workspace.generations / generation_id, kind="generation", made_by="quantize"
    )
    names = {field.name for field in fields(QuantizeOptions)}
    if not base.options or not set(base.options) <= names:
        raise InputError(
            f"generation {base.id} was not made by `crescendo quantize`: a study makes others like "
            "it, and needs its options; give --generation"
        )
    return base


def like(base: Manifest, **changes: Any) -> QuantizeOptions:
    """The base's options with `changes`, without what not every method has.

    That is balance, collision resolution and alignment: they would not be compared alone.
    """
    shared = base.options | {"modalities": tuple(base.options["modalities"])}
    plain = {"balance": None, "collisions": None, "align_to": None, "workers": 1}
    return QuantizeOptions(**(shared | plain | changes))


def generation_of(workspace: Workspace, options: QuantizeOptions) -> str:
    """Id of the generation with these options, made if there is none of today's embeddings.

    Tracks that came since it was made get their IDs from its frozen books.
    """
    found = _find(workspace, options)
    with _newest_stays(workspace):
        if found is not None and complete(workspace, found) is not None:
            log.info("generation is there", generation=found, method=options.method)
            return found
        return str(quantize(workspace, options)["generation_id"])


def repeated_level_1(workspace: Workspace, source_id: str) -> str:
    """Id of a generation whose every level is the source's level 1, made if it is not there.

    What a ranker gains from the source beyond this one, it gains from the deeper levels.
    """
    source = read_manifest(workspace.generations / source_id, kind="generation", made_by="quantize")
    generation_id = content_id("gen", source.id, source.files, REPEATED)
    folder = workspace.generations / generation_id
    try:
        read_manifest(folder, kind="generation", made_by="study")
        return generation_id
    except ArtifactError:
        pass  # not there yet, or damaged: it is written
    ids = pq.read_table(workspace.generations / source_id / IDS_FILE)
    for family in source.info["families"]:
        name = schema.sid_column(family)
        repeated = _repeated(ids[name].combine_chunks(), source.info["levels"])
        ids = ids.set_column(ids.schema.get_field_index(name), name, repeated)
    manifest = Manifest(
        kind="generation",
        id=generation_id,
        parents={"generation": source.id, "codebooks": {}},
        options=source.options | {"control": REPEATED},
        rows=dict(source.rows),
        info={name: source.info[name] for name in ("families", "levels", "codes")},
    )
    with _newest_stays(workspace), write_artifact(folder, manifest) as partial:
        pq.write_table(ids, partial / IDS_FILE)
    return generation_id


def register_offline(workspace: Workspace, generation_ids: Sequence[str]) -> list[str]:
    """Registers the views of generations that are not, for `training_set`; returns their ids."""
    with step("import feast"):
        from feature_repo import feature_definitions as definitions
        from feature_repo.store import apply, find_view, open_store
        from feature_repo.working_copy import publish_now

    store = open_store(workspace)
    generations = []
    for generation_id in dict.fromkeys(generation_ids):
        generation = read_manifest(
            workspace.generations / generation_id, kind="generation", made_by="quantize"
        )
        try:
            find_view(store, schema.semantic_ids_view_name(generation_id))
            if _source_is_whole(workspace, generation):
                continue
        except ArtifactError:
            pass  # not registered, or for another folder: it is registered
        generations.append(generation)
    if not generations:
        return []
    views = []
    for generation in generations:
        write_semantic_ids(workspace, generation)
        families = tuple(generation.info["families"])
        view = definitions.semantic_ids_view(workspace.published_sources, generation.id, families)
        view.online = False
        views.append(view)
    publish_now(workspace)  # the registry is about to name the sources to other machines
    with step("feast apply", views=len(views)):
        apply(store, [definitions.track, *views])
    return [generation.id for generation in generations]


@contextmanager
def _newest_stays(workspace: Workspace) -> Iterator[None]:
    """Whichever generation is the newest before the block is so after it."""
    before = newest(workspace.generations, kind="generation", made_by="quantize")
    try:
        yield
    finally:
        after = newest(workspace.generations, kind="generation", made_by="quantize")
        if after.id != before.id:
            folder = workspace.generations / before.id
            with only_writer(folder):
                manifest = read_manifest(folder, kind="generation", made_by="quantize")
                manifest.created_at = datetime.now(UTC).isoformat()
                write_json(folder / MANIFEST, asdict(manifest))


def _find(workspace: Workspace, options: QuantizeOptions) -> str | None:
    """The newest generation of these options whose books are of the newest embeddings."""
    wanted = _what(asdict(options))
    encoder_ids = {
        modality: newest(
            workspace.embeddings(modality, ""),
            kind=EMBEDDING,
            made_by=f"embed --modality {modality} --encoder ENCODER",
        ).id
        for modality in options.modalities
    }
    found = []
    for path in workspace.generations.glob(f"[!.]*/{MANIFEST}"):
        manifest = read_manifest(path.parent, kind="generation", made_by="quantize", verify=False)
        if _what(manifest.options) == wanted and _encoders(workspace, manifest) == encoder_ids:
            found.append(manifest)
    return max(found, key=lambda manifest: manifest.created_at).id if found else None


def _what(options: dict[str, Any]) -> dict[str, Any]:
    """As a manifest holds them; one that was written before an option was there has its default."""
    every = json.loads(json.dumps(asdict(QuantizeOptions()) | options))
    return {name: value for name, value in every.items() if name not in HOW}


def _encoders(workspace: Workspace, generation: Manifest) -> dict[str, str]:
    """Encoder of each modality that the generation's books were fitted on."""
    encoders: dict[str, str] = {}
    for codebook_id in generation.parents["codebooks"].values():
        folder = workspace.codebooks / codebook_id
        book = read_manifest(folder, kind="codebook", made_by="quantize", verify=False)
        encoders |= book.parents["embeddings"]
    return encoders


def _source_is_whole(workspace: Workspace, generation: Manifest) -> bool:
    """Whether the view's source holds the generation's rows, those assigned lately too."""
    folder = workspace.feature_source(schema.semantic_ids_view_name(generation.id))
    source = read_manifest(folder, kind="feature_source", made_by="publish")
    return source.rows["rows"] == generation.rows["tracks"]


def _repeated(codes: pa.ListArray, levels: int) -> pa.ListArray:
    """The first code of every list, as often as there are levels; empty lists stay so."""
    lengths = codes.value_lengths()
    first = codes.flatten().to_numpy().reshape(-1, levels)[:, 0]
    offsets = pa.array([0, *lengths.to_numpy().cumsum()], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(first.repeat(levels)))
