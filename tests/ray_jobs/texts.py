"""Tracks with text for the tests of text encoders, with what lyrics can hold."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCRIPTS = {
    "latin": "naïve café",
    "cyrillic": "слово за слово",
    "han": "彼の歌は夜の海を",
    "hangul": "음악이 흐른다",
    "arabic": "مرحبا بالعالم",
    "hebrew": "שלום עולם",
    "thai": "สวัสดีชาวโลก",
    "devanagari": "नमस्ते दुनिया",
    "pictures": "🎻🎶 👨‍👩‍👧",
    "rare han": "𠀀𠀁 𠮷野家",
    "combining": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
    "private": "\ue000\U0010fffd",
    "null byte": "a\x00b",
}
CONTROL_TEXTS = ("<s>", "</s>", "<unk>", "[SEP] [CLS]", "<reserved_106>", "<reserved_107> la")


def track_rows(*rows: dict[str, object]) -> pa.Table:
    """Tracks with what is given of title, artist, tags and lyrics, numbered from 0."""
    blank = {"title": "", "artist": None, "tags": None, "lyrics": None}
    kinds = {"tags": pa.list_(pa.string())}
    rows = [blank | row for row in rows]
    columns = {
        name: pa.array([row[name] for row in rows], kinds.get(name, pa.string())) for name in blank
    }
    return pa.table({"track_id": pa.array(range(len(rows)), pa.int64()), **columns})


def invalid_utf8(folder: Path) -> pa.Table:
    """Tracks from a parquet file that another program wrote: strings that are not UTF-8.

    The second title, a tag of the third and the lyrics of the fourth are not.
    """
    good = track_rows(*({"title": f"t{n}", "tags": ["a"], "lyrics": "la"} for n in range(5)))

    def broken(values: list[bytes]) -> pa.Array:
        return pa.array(values, pa.binary()).view(pa.string())

    good = good.set_column(1, "title", broken([b"t0", b"caf\xe9", b"t2", b"t3", b"t4"]))
    tags = pa.ListArray.from_arrays([0, 1, 2, 3, 4, 5], broken([b"a", b"a", b"\xff", b"a", b"a"]))
    good = good.set_column(3, "tags", tags)
    lyrics = broken([b"la", b"la", b"la", b"la \xed\xa0\x80 la", b"la"])
    pq.write_table(good.set_column(4, "lyrics", lyrics), folder / "tracks.parquet")
    return pq.read_table(folder / "tracks.parquet")
