"""A small MME-SID: a random Llama in Hugging Face's format, tables, and sequences with a rule."""

import numpy as np
import torch

from models.llama import Llama, load_llama
from models.mme_sid import MmeSid
from models.mme_sid_items import MmeSidConfig
from models.next_items import NextItems

FAMILIES, DIMS = ("collaborative", "text"), (5, 7)
LEVELS, CODES, WIDTH = 3, 6, 4
ITEMS = 40


def hugging_face_model(layers: int = 2, seed: int = 0):
    """transformers' own LlamaModel, random."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(seed)
    return LlamaModel(
        LlamaConfig(
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            vocab_size=11,
            initializer_range=0.1,
        )
    ).eval()


def backbone(layers: int = 2, seed: int = 0) -> Llama:
    theirs = hugging_face_model(layers, seed)
    return load_llama(
        theirs.config.to_dict(), theirs.state_dict(), dtype=torch.float32, device="cpu"
    )


def config(**changes) -> MmeSidConfig:
    settings = {
        "families": FAMILIES,
        "dims": DIMS,
        "levels": LEVELS,
        "codes": CODES,
        "code_width": WIDTH,
        "hidden": 16,
        "temperature": 0.7,
    }
    return MmeSidConfig(**settings | changes)


def tables(items: int = ITEMS, seed: int = 0) -> dict:
    """Keyword arguments of MmeSid; item 3 lacks the text, item 4 its codes as well."""
    random = np.random.default_rng(seed)
    raw = {
        family: torch.from_numpy(random.normal(size=(items + 1, dim)).astype(np.float32))
        for family, dim in zip(FAMILIES, DIMS, strict=True)
    }
    codes_IFL = torch.from_numpy(random.integers(0, CODES, (items + 1, len(FAMILIES), LEVELS)))
    codes_IFL[0] = -1
    raw["text"][[3, 4]] = 0
    codes_IFL[4, 1] = -1
    for table in raw.values():
        table[0] = 0
    books = {
        family: torch.from_numpy(random.normal(size=(LEVELS, CODES, WIDTH)).astype(np.float32))
        for family in FAMILIES
    }
    counts_I = torch.from_numpy(random.integers(0, 50, items + 1))
    counts_I[0] = 0
    return {"raw": raw, "codes_IFL": codes_IFL, "code_embeddings": books, "counts_I": counts_I}


def model(seed: int = 0, items: int = ITEMS, **changes) -> MmeSid:
    torch.manual_seed(seed)
    return MmeSid(backbone(), config(**changes), **tables(items))


def cycles(users: int = 120, items: int = ITEMS, seed: int = 0) -> NextItems:
    """Sequences in which track t is always followed by t + 7 (mod the number of tracks)."""
    random = np.random.default_rng(seed)
    sequences = []
    for _ in range(users):
        start, length = random.integers(0, items), random.integers(5, 12)
        sequences.append([int((start + 7 * step) % items) + 100 for step in range(length)])
    return NextItems.from_sequences(sequences, track_ids=range(100, 100 + items))
