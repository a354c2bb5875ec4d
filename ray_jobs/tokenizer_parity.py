"""A sentencepiece model as a fast tokenizer, with the proof that both cut every text alike.

`write_fast_tokenizer` writes `tokenizer.json` (which needs neither sentencepiece nor code of the
model's authors) after comparing it with sentencepiece itself on `parity_corpus`: words of many
scripts, digits, white space, rare characters, control-token text, and texts made of the
model's own pieces. One text that differs refuses the conversion.

Control tokens (`<s>`, `<reserved_106>`) that occur in a text are text: other people's lyrics must
not steer the model. sentencepiece reads control pieces so, and user-defined ones as the token; so
these count as control here, on both sides. The fast tokenizer is told by `split_special_tokens`.
"""

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.artifacts import write_json
from feature_repo.errors import InputError
from ray_jobs.published_config import read_config

TOKENIZER_MODEL = "tokenizer.model"
TOKENIZER_SETTINGS = "tokenizer_config.json"
TOKENIZER = "tokenizer.json"
SPACE = "\u2581"
"""What sentencepiece writes for a blank."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of a piece in sentencepiece's model file."""
BPE = 2
CONTROL_TEXT = re.compile(r"<(reserved_\d+|[^<>\s]+)>")
RESERVED = re.compile(r"<reserved_\d+>")
RANDOM_TEXTS = 2_000
SCRIPTS = {
    "latin": (0x41, 0x17F),
    "greek": (0x391, 0x3C9),
    "cyrillic": (0x410, 0x44F),
    "armenian": (0x561, 0x586),
    "hebrew": (0x5D0, 0x5EA),
    "arabic": (0x627, 0x64A),
    "devanagari": (0x905, 0x939),
    "bengali": (0x985, 0x9B9),
    "tamil": (0xB85, 0xBB9),
    "thai": (0xE01, 0xE3A),
    "tibetan": (0xF40, 0xF6C),
    "georgian": (0x10D0, 0x10FA),
    "hangul jamo": (0x1100, 0x11FF),
    "ethiopic": (0x1200, 0x1248),
    "khmer": (0x1780, 0x17B3),
    "punctuation": (0x2010, 0x205E),
    "signs": (0x2190, 0x23FF),
    "kana": (0x3041, 0x30FE),
    "han": (0x4E00, 0x9FA5),
    "hangul": (0xAC00, 0xD7A3),
    "fullwidth": (0xFF01, 0xFF5E),
    "gothic": (0x10330, 0x1034A),
    "letters of mathematics": (0x1D400, 0x1D4FF),
    "pictures": (0x1F300, 0x1F6FF),
    "rare han": (0x20000, 0x20200),
}
"""First and last code point of the characters that words are made of."""
WRITTEN = (
    "", " ", "  ", "\n", "\t", "\r\n", "a", " a", "a ", "  a  b  ", "a\tb\nc\r\nd", " \n \n ",
    "over the hills and far away", "The Rocky Road to Dublin by Traditional. slip jig, irish.",
    "Don't Stop 'Til You Get Enough", "AC/DC", "P!nk", "99 Luftballons", "1999", "2 + 2 = 4",
    "3.14159, 1e-07, 0x1F, 1,000,000", "00000000", "1234567890" * 4, "7/8 (live) [remix] {feat.}",
    "a" * 100, " " * 40, "=" * 33, "!?!?!?...---___", "C#, F# & Bb", "e\u0301 \u00e9", "\u00a0x",
    "\u3000x\u3000", "x\u200by\u200dz", "\ufeffx", "\u202eabc", "\u2581x\u2581", "\x00a\x01\x7f",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1ee\U0001f1ea", "\u0627\u064e\u0644",
    "<s>", "</s>", "<s>verse</s> chorus <s>", "<unk>", "<pad>", "[SEP]", "<reserved_106>",
    "a<reserved_107>b", "<reserved_106> la la <reserved_107>", "<|endoftext|>", "<0x0A>", "<0xE4>x",
    "https://example.org/?q=a&b=%20#c", "<b>bold</b>", "SELECT * FROM t;", "caf\u00e9 na\u00efve",
    "\U0010fffd", "\ue000",
)  # fmt: skip


def write_fast_tokenizer(source: Path, target: Path, *, vocab_size: int) -> dict[str, Any]:
    """Writes `tokenizer.json` and its settings; what the conversion's manifest says of them.

    Raises InputError for a model that is no byte-pair encoding, one with more pieces than the
    embedding has rows, and where a text of the corpus is not cut as sentencepiece cuts it.
    """
    from transformers import AutoTokenizer

    proto = _read_model(source / TOKENIZER_MODEL)
    if len(proto.pieces) > vocab_size:
        raise InputError(
            f"{source / TOKENIZER_MODEL} has {len(proto.pieces):,} pieces, more than the "
            f"vocab_size={vocab_size:,} of the model"
        )
    settings = _settings(source, proto)
    _fast_tokenizer(proto, settings).save(str(target / TOKENIZER))
    write_json(target / TOKENIZER_SETTINGS, settings)
    # As the encoder loads it, from the files.
    tokenizer = AutoTokenizer.from_pretrained(
        target, local_files_only=True, trust_remote_code=False, use_fast=True
    )
    texts = check_parity(tokenizer, proto, bos=settings["add_bos_token"])
    return {
        "parity_texts": texts,
        "pieces": len(proto.pieces),
        "add_dummy_prefix": proto.normalizer_spec.add_dummy_prefix,
        "versions": {name: version(name) for name in ("tokenizers", "sentencepiece")},
    }


def check_parity(tokenizer: Any, proto: Any, *, bos: bool) -> int:
    """Compares the ids of every text of the corpus with sentencepiece's; how many there were."""
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    texts = list(parity_corpus(proto))
    found = tokenizer(texts, split_special_tokens=True)["input_ids"]
    start = [reference.bos_id()] if bos else []
    for text, ids in zip(texts, found, strict=True):
        expected = [*start, *reference.encode(text)]
        if ids != expected:
            raise InputError(
                f"the fast tokenizer cuts {text[:80]!r} into {ids[:20]}, sentencepiece into "
                f"{expected[:20]}: this sentencepiece model cannot be converted faithfully"
            )
    return len(texts)


def parity_corpus(proto: Any) -> Iterator[str]:
    """The same texts for the same model, the empty one first."""
    yield from WRITTEN
    random = np.random.default_rng(0)
    for first, last in SCRIPTS.values():
        for _ in range(20):
            points = random.integers(first, last + 1, size=(random.integers(1, 8), 6))
            yield " ".join("".join(map(chr, word[: random.integers(1, 7)])) for word in points)
    pieces = [p.piece.replace(SPACE, " ") for p in proto.pieces if p.type in (NORMAL, USER_DEFINED)]
    for _ in range(RANDOM_TEXTS):
        yield "".join(pieces[n] for n in random.integers(len(pieces), size=random.integers(1, 13)))


def _read_model(path: Path) -> Any:
    """The model's protobuf, control-token text made control. Refuses what has no counterpart."""
    if not path.is_file():
        raise InputError(f"encoder folder {path.parent} has no {path.name}")
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise InputError(
            f"reading {path.name} needs sentencepiece ({error}); run `pip install sentencepiece`"
        ) from error
    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise InputError(f"{path} is no sentencepiece model: {error}") from error
    normalizer = proto.normalizer_spec
    known = {
        "trainer_spec.model_type": (proto.trainer_spec.model_type, BPE),
        "trainer_spec.treat_whitespace_as_suffix": (
            proto.trainer_spec.treat_whitespace_as_suffix,
            False,
        ),
        "normalizer_spec.escape_whitespaces": (normalizer.escape_whitespaces, True),
        "unused pieces": (sum(piece.type == UNUSED for piece in proto.pieces), 0),
        "unknown pieces": (sum(piece.type == UNKNOWN for piece in proto.pieces), 1),
    }
    for name, (came, expected) in known.items():
        if came != expected:
            raise InputError(f"{path}: {name} is {came!r}; only {expected!r} is known here")
    for piece in proto.pieces:
        shaped = piece.type == USER_DEFINED and CONTROL_TEXT.fullmatch(piece.piece)
        if shaped or (piece.type == NORMAL and RESERVED.fullmatch(piece.piece)):
            piece.type = CONTROL
    return proto


def _fast_tokenizer(proto: Any, settings: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers.processors import TemplateProcessing

    pieces, spec = proto.pieces, proto.normalizer_spec
    model = models.BPE(
        vocab={piece.piece: number for number, piece in enumerate(pieces)},
        merges=_merges(proto),
        unk_token=settings["unk_token"],
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )
    tokenizer = Tokenizer(model)
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:  # blanks alone; at the end also what is written for them
        steps += [
            normalizers.Replace(Regex(pattern), to)
            for pattern, to in ((rf"\A +|[ {SPACE}]+\z", ""), (" {2,}", " "))
        ]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(piece.piece, special=True, normalized=False)
            for piece in pieces
            if piece.type in (UNKNOWN, CONTROL)
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece.replace(SPACE, " "), special=False, normalized=False)
            for piece in pieces
            if piece.type == USER_DEFINED
        ]
    )
    if settings["add_bos_token"]:
        bos = settings["bos_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def _merges(proto: Any) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the highest score of the made one first.

    sentencepiece has no list of merges: it joins the two neighbours that make the piece of the
    highest score, and the leftmost of equals.
    """
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces) if piece.type == NORMAL}
    found = [
        (-proto.pieces[number].score, ids[text[:cut]], ids[text[cut:]])
        for text, number in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    return [(proto.pieces[a].piece, proto.pieces[b].piece) for _, a, b in sorted(found)]


def _settings(source: Path, proto: Any) -> dict[str, Any]:
    """`tokenizer_config.json` of the fast tokenizer. Refuses an end token after every text."""
    raw = read_config(source, TOKENIZER_SETTINGS) if (source / TOKENIZER_SETTINGS).is_file() else {}
    if raw.get("add_eos_token", False) is not False:
        raise InputError(
            f"{source / TOKENIZER_SETTINGS}: add_eos_token is {raw['add_eos_token']!r}; "
            "expected false"
        )
    names = proto.trainer_spec
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": raw.get("add_bos_token", False) is True,
        "add_eos_token": False,
        "bos_token": names.bos_piece or "<s>",
        "eos_token": names.eos_piece or "</s>",
        "unk_token": next(piece.piece for piece in proto.pieces if piece.type == UNKNOWN),
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
