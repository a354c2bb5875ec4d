"""table: any catalogue and listening log as parquet or CSV files, by a column mapping.

`--path` is the folder that the mapping's paths start from, `--mapping` a JSON file:

    {
      "tracks": {
        "path": "songs.parquet",
        "columns": {"track_id": "song", "title": "name", "tags": "genres"},
        "list_separator": "|"
      },
      "events": {
        "path": "plays.csv",
        "columns": {"user_id": "listener", "track_id": "song", "event_timestamp": "ts",
                    "action": "what"},
        "timestamp_unit": "ms",
        "actions": {"thumbs_up": "favourite", "next": "skip"},
        "default_action": "play"
      }
    }

`columns` names the contract's column first and the source's second. A parquet path may be a
folder. `timestamp_unit` (`s`, `ms`, `us`, or `iso`: text, dates and parquet timestamps) holds for
`event_timestamp` and `ingested_at`; `released_at` is a year, a date or a time. `default_action`
stands in where an event names none. Tags are a list column, or text split at `list_separator`.
Vectors (`<modality>_vector`) are list columns of a parquet file. Audio files named without a
leading `/` or a scheme are taken to lie under `--path`.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from feature_repo.errors import InputError
from feature_repo.schema import EVENTS, TRACKS, VECTOR_SUFFIX
from ray_jobs.adapters.source_files import absolute_uris, read_delimited, read_parquet, reading
from ray_jobs.arrow_sql import literal, query, quoted, text_from_epoch
from ray_jobs.contract import SourceTables
from ray_jobs.contract_checks import MALFORMED_ROW

Action = Literal["play", "complete", "skip", "favourite"]
EXPECTED = "a JSON file that maps columns (ray_jobs/adapters/table.py shows one)"
CSV_SUFFIXES = (".csv", ".tsv", ".txt")
EVENT_TIMES = ("event_timestamp", "ingested_at")


def _contract_columns(
    columns: dict[str, str], known: list[str], required: tuple[str, ...], vectors: bool
) -> dict[str, str]:
    unknown = [
        name
        for name in columns
        if name not in known and not (vectors and name.endswith(VECTOR_SUFFIX))
    ]
    missing = [name for name in required if name not in columns]
    more = f", <modality>{VECTOR_SUFFIX}" if vectors else ""
    if unknown:
        raise ValueError(f"{unknown} are not contract columns; those are {', '.join(known)}{more}")
    if missing:
        raise ValueError(f"lacks {missing}; got {list(columns)}")
    return columns


def _tracks_columns(columns: dict[str, str]) -> dict[str, str]:
    return _contract_columns(columns, TRACKS.names, ("track_id", "title"), vectors=True)


def _events_columns(columns: dict[str, str]) -> dict[str, str]:
    required = ("user_id", "track_id", "event_timestamp")
    return _contract_columns(columns, EVENTS.names, required, vectors=False)


class TracksMapping(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: Path
    columns: Annotated[dict[str, str], AfterValidator(_tracks_columns)]
    list_separator: Annotated[str, Field(min_length=1)] = "|"


class EventsMapping(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: Path
    columns: Annotated[dict[str, str], AfterValidator(_events_columns)]
    timestamp_unit: Literal["s", "ms", "us", "iso"] = "iso"
    default_action: Action | None = None
    actions: dict[str, Action] = {}

    @model_validator(mode="after")
    def _some_action(self) -> "EventsMapping":
        if "action" not in self.columns and self.default_action is None:
            raise ValueError("needs columns.action or default_action, for instance 'play'")
        return self


class TableMapping(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tracks: TracksMapping
    events: EventsMapping


def read(path: Path, mapping: Path) -> SourceTables:
    columns = read_mapping(mapping)
    return SourceTables(tracks=_tracks(path, columns.tracks), events=_events(path, columns.events))


def read_mapping(path: Path) -> TableMapping:
    """The mapping, or an error that names every field that is wrong, and its value."""
    with reading(path, EXPECTED):
        try:
            return TableMapping.model_validate(json.loads(path.read_text()))
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc']) or 'mapping'}: "
                f"{problem['msg']} (got {problem['input']!r})"
                for problem in error.errors()
            )
            raise InputError(f"{path}: {wrong}") from error


def _tracks(path: Path, mapping: TracksMapping) -> pa.Table:
    table = _mapped(path / mapping.path, mapping.columns)
    for place, name in enumerate(table.column_names):
        column = table[name]
        is_text = _is_text(column.type)
        if name == "tags" and is_text:
            column = _split(table, mapping.list_separator)
        elif name == "released_at" and (is_text or _is_number(column.type)):
            column = _dates(table)
        elif name == "audio_uri":
            column = absolute_uris(column, path)
        elif name.endswith(VECTOR_SUFFIX) and is_text:
            raise InputError(
                f"column {mapping.columns[name]} of {path / mapping.path} is text; {name} needs "
                f"a list column of numbers in a parquet file"
            )
        table = table.set_column(place, name, column)
    return table


def _split(tracks: pa.Table, separator: str) -> pa.ChunkedArray:
    split = f"string_split(tags, {literal(separator)})"
    return query(
        f"SELECT list_filter(list_transform({split}, lambda tag: trim(tag)), "
        f"lambda tag: tag <> '') AS tags FROM tracks",
        tracks=tracks.select(["tags"]),
    )["tags"]


def _dates(tracks: pa.Table) -> pa.ChunkedArray:
    """A year as its first day (1999.0 as well, from pandas); a date or a time stays text."""
    return query(
        r"""
        SELECT CASE
            WHEN regexp_full_match(CAST(released_at AS VARCHAR), '[0-9]{4}(\.0)?')
            THEN substr(CAST(released_at AS VARCHAR), 1, 4) || '-01-01'
            ELSE CAST(released_at AS VARCHAR)
        END AS released_at
        FROM tracks
        """,
        tracks=tracks.select(["released_at"]),
    )["released_at"]


def _events(path: Path, mapping: EventsMapping) -> pa.Table:
    table = _mapped(path / mapping.path, mapping.columns)
    times = [] if mapping.timestamp_unit == "iso" else list(EVENT_TIMES)
    # A parquet timestamp knows its unit: the mapping's is for numbers, and numbers in text.
    times = [n for n in times if n in table.column_names and not _is_time(table[n].type)]
    kept = [quoted(name) for name in table.column_names if name not in (*times, "action")]
    read_times = [f"{text_from_epoch(name, mapping.timestamp_unit)} AS {name}" for name in times]
    action = "CAST(action AS VARCHAR)" if "action" in table.column_names else "NULL"
    cases = " ".join(
        f"WHEN {literal(theirs)} THEN {literal(ours)}" for theirs, ours in mapping.actions.items()
    )
    mapped = f"CASE {action} {cases} ELSE {action} END" if cases else action
    default = literal(mapping.default_action) if mapping.default_action else "NULL"
    return query(
        f"SELECT {', '.join([*kept, *read_times])}, "
        f"CAST(coalesce({mapped}, {default}) AS VARCHAR) AS action FROM events",
        events=table,
    )


def _mapped(path: Path, columns: dict[str, str]) -> pa.Table:
    """The file's mapped columns, under the contract's names."""
    wanted = list(columns.values())
    if path.name.removesuffix(".gz").endswith(CSV_SUFFIXES):
        table = read_delimited(path, wanted)
        columns = {**columns, MALFORMED_ROW: MALFORMED_ROW}
    else:
        table = read_parquet(path, wanted)
    return pa.table({ours: table[theirs] for ours, theirs in columns.items()})


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_time(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind)
