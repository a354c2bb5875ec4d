"""`hf-text` and `baichuan`: from lyrics to vectors, for padded and packed networks alike."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.errors import ArtifactError, InputError
from ray_jobs.convert_encoder import ConvertOptions, convert_encoder
from ray_jobs.encoders import text_networks
from ray_jobs.encoders.baichuan import baichuan_encoder
from ray_jobs.encoders.text import NO_TEXT, PREPARED, TextEncoder, track_text
from tests.ray_jobs.encoder_checkpoints import (
    baichuan_config,
    baichuan_tensors,
    bert_folder,
    llama_folder,
    published_baichuan,
    sentencepiece_model,
    write,
)
from tests.ray_jobs.encoder_formulas import baichuan_states
from tests.ray_jobs.texts import CONTROL_TEXTS, SCRIPTS, invalid_utf8, track_rows

MAX_TOKENS = 60
ENCODERS = ("bert", "baichuan", "llama")
WORDS = ("over", "the", "hills", "and", "far", "away", "彼の歌", "слово", "1999", "la", "<s>")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, TextEncoder]:
    folder = tmp_path_factory.mktemp("text")
    published = published_baichuan(folder / "published")
    converted = folder / "converted"
    convert_encoder(ConvertOptions(kind="baichuan", source=published, target=converted))
    llama = llama_folder(folder / "llama", published / "tokenizer.model")
    bert = bert_folder(folder / "bert")
    return {
        "bert": TextEncoder(name="bert", folder=bert, max_tokens=MAX_TOKENS),
        "llama": TextEncoder(name="llama", folder=llama, max_tokens=MAX_TOKENS),
        "baichuan": baichuan_encoder(converted, max_tokens=MAX_TOKENS, dtype="float32"),
    }


def vectors_of(encoder: TextEncoder, *rows: dict[str, object]) -> np.ndarray:
    return np.stack(encoder.encode(encoder.prepare(track_rows(*rows))))


def texts_of(*lyrics: str) -> list[dict[str, object]]:
    return [{"title": "x", "lyrics": lyric} for lyric in lyrics]


def test_baichuan_is_the_mean_of_the_formula_over_sentencepiece_tokens(encoders) -> None:
    import sentencepiece

    encoder = encoders["baichuan"]
    source = encoder.folder.parent / "published"
    processor = sentencepiece.SentencePieceProcessor(str(source / "tokenizer.model"))
    config = baichuan_config()
    rows = texts_of("over the hills", *SCRIPTS.values(), *CONTROL_TEXTS)
    prepared = encoder.prepare(track_rows(*rows))
    assert prepared.schema == PREPARED
    for row, ids, vector in zip(
        rows, prepared["input"].to_pylist(), encoder.encode(prepared), strict=True
    ):
        text = track_text(row["title"], None, None, row["lyrics"])
        assert ids == processor.encode(text)[:MAX_TOKENS]
        states = baichuan_states(config, baichuan_tensors(config), ids)
        np.testing.assert_allclose(vector, states[-1].mean(0), atol=1e-5)
        assert vector.dtype == np.float32
        assert vector.shape == (encoder.dim,)


def test_llama_is_the_mean_that_transformers_gives_without_the_start_token(encoders) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = encoders["llama"]
    model = AutoModel.from_pretrained(encoder.folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder.folder, local_files_only=True)
    rows = texts_of("over the hills", "la " * 100, *SCRIPTS.values())
    found = vectors_of(encoder, *rows)
    for row, vector in zip(rows, found, strict=True):
        text = track_text(row["title"], None, None, row["lyrics"])
        ids = tokenizer(text, split_special_tokens=True)["input_ids"][:MAX_TOKENS]
        assert ids[0] == tokenizer.bos_token_id
        with torch.inference_mode():
            states = model(torch.tensor([ids])).last_hidden_state[0]
        np.testing.assert_allclose(vector, states[1:].mean(0), atol=1e-5)


def test_bert_is_the_mean_that_transformers_gives(encoders) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = encoders["bert"]
    model = AutoModel.from_pretrained(encoder.folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder.folder, local_files_only=True)
    rows = texts_of("reel by jig", "air slow " * 50, "by")
    prepared = encoder.prepare(track_rows(*rows))
    tokens_of = prepared["input"].to_pylist()
    assert prepared["truncated"].to_pylist() == [False, True, False]
    for row, ids, vector in zip(rows, tokens_of, encoder.encode(prepared), strict=True):
        text = track_text(row["title"], None, None, row["lyrics"])
        tokens = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        assert tokens["input_ids"][0].tolist() == ids
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state[0]
        np.testing.assert_allclose(vector, states.mean(0), atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_lyrics_in_any_script_have_a_vector(encoders, name: str, script: str) -> None:
    found = vectors_of(encoders[name], *texts_of(SCRIPTS[script], SCRIPTS[script] * 30))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_empty_lyrics_have_a_reason(encoders, name: str) -> None:
    encoder = encoders[name]
    rows = ({}, {"title": "Air"}, {"tags": [" ", None]}, {"lyrics": "\n\t\u3000 "}, {"title": None})
    prepared = encoder.prepare(track_rows(*rows))
    assert prepared["error"].to_pylist() == [NO_TEXT, None, NO_TEXT, NO_TEXT, NO_TEXT]
    assert prepared["input"].is_valid().to_pylist() == [False, True, False, False, False]
    assert prepared["n_tokens"].null_count == prepared["truncated"].null_count == 4
    outcomes = encoder.encode(prepared)
    assert [isinstance(outcome, np.ndarray) for outcome in outcomes] == [0, 1, 0, 0, 0]
    assert outcomes[0] == NO_TEXT
    assert encoder.encode(encoder.prepare(track_rows({}))) == [NO_TEXT]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_megabyte_of_lyrics_is_cut_and_says_so(encoders, name: str) -> None:
    encoder = encoders[name]
    lyrics = "over the hills and far away " * 40_000
    assert len(lyrics) > 10**6
    prepared = encoder.prepare(track_rows(*texts_of("short", lyrics, lyrics[:3000])))
    assert prepared["truncated"].to_pylist() == [False, True, True]
    assert prepared["n_tokens"].to_pylist()[1:] == [MAX_TOKENS, MAX_TOKENS]
    ids = prepared["input"].to_pylist()
    assert [len(line) for line in ids] == prepared["n_tokens"].to_pylist()
    assert ids[1] == ids[2]
    if name == "bert":  # what stands at the end of each text is still there
        assert ids[0][-1] == ids[1][-1]
    one, two, three = encoder.encode(prepared)
    np.testing.assert_allclose(two, three, atol=1e-6)
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("control", CONTROL_TEXTS)
def test_control_tokens_in_lyrics_stay_text(encoders, name: str, control: str) -> None:
    encoder = encoders[name]
    tokenizer = encoder._tokenizer
    prepared = encoder.prepare(track_rows(*texts_of(f"before {control} after", "before after")))
    with_control, without = prepared["input"].to_pylist()
    added = {name: number for name, number in tokenizer.get_added_vocab().items() if number > 0}
    assert added
    for number in added.values():
        assert with_control.count(number) == without.count(number)
    assert len(with_control) > len(without)


@pytest.mark.parametrize("name", ENCODERS)
def test_bytes_that_are_not_utf8_are_a_reason_and_the_others_go_on(
    encoders, tmp_path: Path, name: str
) -> None:
    encoder = encoders[name]
    tracks = invalid_utf8(tmp_path)
    outcomes = encoder.encode(encoder.prepare(tracks))
    assert [isinstance(outcome, np.ndarray) for outcome in outcomes] == [1, 0, 0, 0, 1]
    assert outcomes[1] == "not UTF-8: b'\\xe9' at byte 3 of a text (unexpected end of data)"
    assert outcomes[2].startswith("not UTF-8: b'\\xff' at byte 0")
    assert outcomes[3].startswith("not UTF-8: b'\\xed\\xa0\\x80 ' at byte 3")
    good = encoder.encode(encoder.prepare(tracks.take([0, 4])))
    np.testing.assert_allclose(np.stack([outcomes[0], outcomes[4]]), np.stack(good), atol=1e-6)


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=40), min_size=1, max_size=9
    ),
    budget=st.sampled_from([1, 30, 64, 200, 4096]),
    seed=st.integers(0, 99),
)
def test_neither_order_nor_company_changes_a_vector(encoders, name, texts, budget, seed) -> None:
    encoder = encoders[name]
    prepared = encoder.prepare(track_rows(*texts_of(*map(" ".join, texts))))
    order = np.random.default_rng(seed).permutation(len(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_networks, "CPU_TOKENS", budget)
        together = np.stack(encoder.encode(prepared.take(order)))
    alone = [encoder.encode(prepared.slice(row, 1))[0] for row in order.tolist()]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)


@given(
    lengths=st.lists(st.integers(min_value=1, max_value=300), max_size=60),
    budget=st.integers(min_value=1, max_value=1000),
)
def test_padded_batches_hold_each_text_once_within_the_budget(lengths, budget) -> None:
    batches = list(text_networks.padded_batches(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        of_batch = [lengths[index] for index in batch]
        assert len(batch) == 1 or len(batch) * max(of_batch) <= budget
        assert of_batch == sorted(of_batch)


def test_prepared_rows_need_no_model_and_vectors_no_tokenizer(encoders) -> None:
    """The stages run in different processes."""
    import pickle

    encoder = encoders["baichuan"]
    fresh = pickle.loads(pickle.dumps(dataclasses.replace(encoder)))  # noqa: S301
    prepared = fresh.prepare(track_rows(*texts_of("la la")))
    assert "_network" not in vars(fresh)
    other = dataclasses.replace(encoder)
    np.testing.assert_array_equal(other.encode(prepared)[0], encoder.encode(prepared)[0])


def test_what_changes_a_vector_is_in_the_id_of_baichuan(encoders, tmp_path: Path) -> None:
    encoder = encoders["baichuan"]
    folder = encoder.folder
    same = baichuan_encoder(folder, max_tokens=MAX_TOKENS, dtype="float32")
    assert same.encoder_id == encoder.encoder_id
    ids = {encoder.encoder_id, encoders["llama"].encoder_id}
    ids.add(baichuan_encoder(folder, max_tokens=MAX_TOKENS - 1, dtype="float32").encoder_id)
    ids.add(baichuan_encoder(folder, max_tokens=MAX_TOKENS, dtype="bfloat16").encoder_id)
    other = published_baichuan(tmp_path / "other", rms_norm_eps=1e-5)
    convert_encoder(ConvertOptions(kind="baichuan", source=other, target=tmp_path / "to"))
    moved = baichuan_encoder(tmp_path / "to", max_tokens=MAX_TOKENS, dtype="float32")
    ids.add(moved.encoder_id)
    assert len(ids) == 5


def test_bfloat16_keeps_the_direction(encoders) -> None:
    for name in ENCODERS:
        rows = texts_of(*("la " * n + "over the hills" for n in range(8)))
        exact = vectors_of(encoders[name], *rows)
        coarse = vectors_of(dataclasses.replace(encoders[name], dtype="bfloat16"), *rows)
        norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(coarse, axis=1)
        assert ((exact * coarse).sum(1) / norms > 0.999).all()
        assert np.abs(exact - coarse).max() > 0


def test_a_baichuan_that_was_not_converted_or_was_changed_is_refused(
    encoders, tmp_path: Path
) -> None:
    published = published_baichuan(tmp_path / "published")
    with pytest.raises(ArtifactError, match=r"is no converted encoder.*--kind baichuan"):
        baichuan_encoder(published, max_tokens=9, dtype="float32")
    convert_encoder(ConvertOptions(kind="baichuan", source=published, target=tmp_path / "to"))
    tokenizer = tmp_path / "to" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"add_bos_token": false', "") + " ")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json was changed"):
        baichuan_encoder(tmp_path / "to", max_tokens=9, dtype="float32")
    tokenizer.unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file tokenizer\.json"):
        baichuan_encoder(tmp_path / "to", max_tokens=9, dtype="float32")
    with pytest.raises(InputError, match="max_tokens=4097: expected 1 to 4096"):
        baichuan_encoder(encoders["baichuan"].folder, max_tokens=4097, dtype="float32")


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("config.json", "auto_map"),
        ("config.json", "_attn_implementation_internal"),
        ("tokenizer_config.json", "auto_map"),
    ],
)
def test_folders_that_name_code_are_refused(tmp_path: Path, file: str, key: str) -> None:
    import json

    folder = bert_folder(tmp_path / "bert")
    settings = json.loads((folder / file).read_text())
    write(folder / file, settings | {key: "evil/code"})
    with pytest.raises(InputError, match=f"{key}='evil/code' chooses code to run"):
        TextEncoder(name="bert", folder=folder, max_tokens=9)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bert = bert_folder(tmp_path / "bert")
    sentencepiece_model(tmp_path / "tokenizer.model")
    llama = llama_folder(tmp_path / "llama", tmp_path / "tokenizer.model")
    for folder, end in (
        (bert, "encoder.layer.1.output.dense.weight"),
        (llama, "2.mlp.up_proj.weight"),
    ):
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if name.endswith(end))
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        encoder = TextEncoder(name="own", folder=folder, max_tokens=9)
        prepared = encoder.prepare(track_rows({"title": "x"}))
        with pytest.raises(InputError, match=f"missing.*{end}"):
            encoder.encode(prepared)


def test_prepare_takes_no_rows_and_sliced_tables(encoders) -> None:
    encoder = encoders["llama"]
    tracks = track_rows(*texts_of("one", "two words", "three words here"))
    empty = encoder.prepare(tracks.slice(0, 0))
    assert (empty.num_rows, encoder.encode(empty)) == (0, [])
    prepared = encoder.prepare(pa.concat_tables([tracks.slice(0, 1), tracks.slice(1)]))
    whole = np.stack(encoder.encode(prepared))
    np.testing.assert_allclose(encoder.encode(prepared.slice(2))[0], whole[2], atol=1e-6)
