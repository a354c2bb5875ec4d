"""Lyrics as catalogues hold them, through both stages: each track has a vector or a reason."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.workspace import Workspace
from ray_jobs.embed import EmbedOptions, embed, read_embeddings
from tests.ray_jobs.embedding import rows_on_disk, write_tracks

pytest_plugins = ["tests.ray_jobs.embedding"]
LYRICS = {
    "latin": "Fáilte, naïve Ærø",
    "greek": "το τραγούδι",
    "hebrew, right to left": "שיר אחד",
    "arabic with marks": "أُغْنِيَة",
    "devanagari": "गीत",
    "thai, no spaces": "เพลงของเรา",
    "chinese": "我的歌",
    "korean": "노래",
    "emoji of several code points": "👩‍🎤🏴󠁧󠁢󠁳󠁣󠁴󠁿 🎻",
    "combining": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!",
    "control characters": "a\x00b\x07\x1b[31m\ufeff\u202e",
    "control tokens": "<s></s>[SEP][CLS][PAD]<|endoftext|><reserved_106><unk>",
    "half of a pair, as its own code": "\ud800".encode("utf-8", "replace").decode(),
    "white space": " \n\t\u00a0 ",
}


def in_utf8(values: list[bytes | None]) -> pa.Array:
    """Strings that Arrow has not looked at, as a parquet file may hold them."""
    return pc.cast(pa.array(values, pa.binary()), options=pc.CastOptions.unsafe(pa.string()))


def test_lyrics_of_any_script_have_a_vector(
    workspace: Workspace, text_options: EmbedOptions, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, list(range(len(LYRICS))), lyrics=list(LYRICS.values()))
    result = embed(workspace, text_options)
    assert result.items() >= {"ok": len(LYRICS), "errors": 0}.items()
    assert result["tokens_per_second"] > 0
    assert np.isfinite(read_embeddings(workspace, "text")[1]).all()


def test_texts_of_a_megabyte_are_cut_and_say_so(
    workspace: Workspace, text_options: EmbedOptions, in_process: list[list[int]]
) -> None:
    lyrics = ["la " * 350_000, "x" * 1_000_000, "我" * 350_000, None]
    write_tracks(workspace, [1, 2, 3, 4], lyrics=lyrics)
    assert embed(workspace, text_options)["ok"] == 4
    rows = rows_on_disk(workspace, "text")
    assert [rows[track]["truncated"] for track in (1, 3, 4)] == [True, True, False]
    assert rows[1]["n_tokens"] == text_options.max_tokens


def test_bytes_that_are_not_utf8_are_a_reason(
    workspace: Workspace, text_options: EmbedOptions, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, list(range(6)))
    (path,) = workspace.tracks.iterdir()
    table = pq.read_table(path)

    def put(name: str, column: pa.Array) -> None:
        nonlocal table
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), column)

    put("lyrics", in_utf8([b"tune", b"tune \xff\xfe", b"tune \xed\xa0\x80", b"tune", None, b""]))
    tags = in_utf8([b"reel", b"\xc3("])
    put("tags", pa.ListArray.from_arrays(pa.array([0, 1, 1, 1, 2, 2, 2], pa.int32()), tags))
    pq.write_table(table, path)
    result = embed(workspace, text_options)
    assert result.items() >= {"ok": 3, "errors": 3, "reasons": {"not UTF-8": 3}}.items()
    bad = {t for t, row in rows_on_disk(workspace, "text").items() if row["status"] == "error"}
    assert bad == {1, 2, 3}
    assert embed(workspace, text_options)["embedded"] == 0
    put("lyrics", in_utf8([b"tune", b"tune \xff", b"tune", b"tune", None, b""]))
    pq.write_table(table, path)
    assert embed(workspace, text_options).items() >= {"embedded": 2, "ok": 4}.items()


def test_an_audio_uri_that_is_not_utf8_is_a_reason(
    workspace: Workspace, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, [1, 2], audio_uri=["a", "b"])
    (path,) = workspace.tracks.iterdir()
    table = pq.read_table(path)
    at = table.schema.get_field_index("audio_uri")
    uris = in_utf8([b"caf\xe9.flac", b"gone.flac"])
    pq.write_table(table.set_column(at, table.schema.field(at), uris), path)
    result = embed(workspace, EmbedOptions(modality="audio", encoder="spectral"))
    assert (
        result.items() >= {"errors": 2, "reasons": {"UnicodeDecodeError": 1, "missing": 1}}.items()
    )
