"""sentencepiece models as fast tokenizers: cut alike, or refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.errors import InputError
from ray_jobs.tokenizer_parity import (
    CONTROL,
    USER_DEFINED,
    _read_model,
    check_parity,
    parity_corpus,
    write_fast_tokenizer,
)
from tests.ray_jobs.encoder_checkpoints import sentencepiece_model, write


def fast(source: Path, target: Path):
    """The tokenizer as an encoder loads it, what the conversion said, and sentencepiece itself."""
    import sentencepiece
    from transformers import AutoTokenizer

    target.mkdir()
    said = write_fast_tokenizer(source, target, vocab_size=512)
    tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=True)
    model = sentencepiece.SentencePieceProcessor(str(source / "tokenizer.model"))
    return tokenizer, said, model


@pytest.fixture(scope="module")
def baichuan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    sentencepiece_model(folder / "tokenizer.model")
    return fast(folder, folder / "to")


VARIANTS = {
    "dummy prefix": {"add_dummy_prefix": True},
    "extra spaces go": {"remove_extra_whitespaces": True},
    "both": {"add_dummy_prefix": True, "remove_extra_whitespaces": True},
    "no bytes": {"byte_fallback": False, "vocab_size": 250},
    "user-defined": {"user_defined_symbols": ["<reserved_7>", "lalala"], "control_symbols": []},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_models_with_other_options_are_cut_alike(tmp_path: Path, variant: str) -> None:
    sentencepiece_model(tmp_path / "tokenizer.model", **VARIANTS[variant])
    tokenizer, said, model = fast(tmp_path, tmp_path / "to")
    assert said["add_dummy_prefix"] is (variant in ("dummy prefix", "both"))
    for text in ("over the hills", " two  spaces ", "1999", "lalala", "彼の歌", "e\u0301 \ufb01"):
        assert tokenizer(text, split_special_tokens=True)["input_ids"] == model.encode(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_is_cut_as_sentencepiece_cuts_it(baichuan, text: str) -> None:
    tokenizer, _, model = baichuan
    found = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert found == model.encode(text)


def test_control_tokens_are_text_only_when_asked(baichuan) -> None:
    tokenizer, _, model = baichuan
    text = "<s> la <reserved_106></s>"
    assert tokenizer(text, split_special_tokens=True)["input_ids"] == model.encode(text)
    plain = tokenizer(text)["input_ids"]
    assert {model.bos_id(), model.eos_id(), model.piece_to_id("<reserved_106>")} <= set(plain)


def test_user_defined_control_text_is_text_too(tmp_path: Path) -> None:
    """sentencepiece itself would give the token: the one difference from it, and on purpose."""
    symbols = VARIANTS["user-defined"]
    sentencepiece_model(tmp_path / "tokenizer.model", **symbols)
    tokenizer, _, model = fast(tmp_path, tmp_path / "to")
    token = model.piece_to_id("<reserved_7>")
    assert token in model.encode("a <reserved_7>")
    assert token not in tokenizer("a <reserved_7>", split_special_tokens=True)["input_ids"]
    kinds = {piece.piece: piece.type for piece in _read_model(tmp_path / "tokenizer.model").pieces}
    assert (kinds["<reserved_7>"], kinds["lalala"]) == (CONTROL, USER_DEFINED)


def test_a_start_token_comes_if_the_settings_say_so(tmp_path: Path) -> None:
    sentencepiece_model(tmp_path / "tokenizer.model")
    write(tmp_path / "tokenizer_config.json", {"add_bos_token": True})
    tokenizer, _, model = fast(tmp_path, tmp_path / "to")
    assert tokenizer("la la")["input_ids"] == [model.bos_id(), *model.encode("la la")]
    write(tmp_path / "tokenizer_config.json", {"add_eos_token": True})
    with pytest.raises(InputError, match="add_eos_token is True"):
        write_fast_tokenizer(tmp_path, tmp_path / "to", vocab_size=512)


def test_parity_finds_a_tokenizer_that_differs(baichuan, tmp_path: Path) -> None:
    """One with the prefix space that LlamaTokenizer adds on its own."""
    tokenizer, said, _ = baichuan
    proto = _read_model(Path(tokenizer.name_or_path).parent / "tokenizer.model")
    assert check_parity(tokenizer, proto, bos=False) == said["parity_texts"] > 2000
    assert len(set(parity_corpus(proto))) > 2000
    sentencepiece_model(tmp_path / "tokenizer.model", add_dummy_prefix=True)
    other, _, _ = fast(tmp_path, tmp_path / "to")
    with pytest.raises(InputError, match=r"cuts .* into .*, sentencepiece into .*faithfully"):
        check_parity(other, proto, bos=False)
    with pytest.raises(InputError, match="sentencepiece into"):
        check_parity(tokenizer, proto, bos=True)


def test_models_without_a_counterpart_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "tokenizer.model"
    with pytest.raises(InputError, match=r"has no tokenizer\.model"):
        write_fast_tokenizer(tmp_path, tmp_path, vocab_size=512)
    sentencepiece_model(model, model_type="unigram", vocab_size=350)
    with pytest.raises(InputError, match=r"trainer_spec\.model_type is 1; only 2 is known"):
        write_fast_tokenizer(tmp_path, tmp_path, vocab_size=512)
    sentencepiece_model(model)
    with pytest.raises(InputError, match=r"has 480 pieces, more than the vocab_size=479"):
        write_fast_tokenizer(tmp_path, tmp_path, vocab_size=479)
    # NFKC, which the tokenizers library applies to whole graphemes: Hangul letters differ.
    sentencepiece_model(model, normalization_rule_name="nfkc")
    with pytest.raises(InputError, match="cannot be converted faithfully"):
        write_fast_tokenizer(tmp_path, tmp_path, vocab_size=512)
    sentencepiece_model(model, treat_whitespace_as_suffix=True)
    with pytest.raises(InputError, match="treat_whitespace_as_suffix is True"):
        write_fast_tokenizer(tmp_path, tmp_path, vocab_size=512)
    model.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="is no sentencepiece model"):
        write_fast_tokenizer(tmp_path, tmp_path, vocab_size=512)
