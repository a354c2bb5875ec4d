"""The rankers' formulas in plain numpy, one row at a time, on a model's own weights.

`expected_logits(model, weights, batch)`: no batching, no padding, no torch.
"""

import math

import numpy as np

from models.batch import MISSING_CODE
from tests.models.ranker_batches import B, F, K

JOINT = F - 1


def prelu(x, slope):
    return np.where(x > 0, x, slope * x)


def linear(weights, name, x):
    out = weights[f"{name}.weight"] @ x
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out


def attention(weights, name, keys, query):
    """sum_j a(key_j (+) query) key_j, no softmax."""
    both = np.concatenate(
        [weights[f"{name}.from_key.weight"], weights[f"{name}.from_query.weight"]], axis=1
    )
    total = np.zeros(len(query))
    for key in keys:
        hidden = both @ np.concatenate([key, query]) + weights[f"{name}.from_key.bias"]
        hidden = prelu(hidden, weights[f"{name}.activation.weight"])
        total += linear(weights, f"{name}.to_weight", hidden)[0] * key
    return total


def tower(weights, parts):
    x = np.concatenate(parts)
    for layer in (0, 2):
        x = prelu(linear(weights, f"tower.{layer}", x), weights[f"tower.{layer + 1}.weight"])
    return linear(weights, "tower.4", x)[0]


def code_embedding(table, codes):
    """e = sum_l E_l[id_l]; level l's table starts at row l * K."""
    rows = [table[level * K + code] for level, code in enumerate(codes) if code != MISSING_CODE]
    return np.sum(rows, axis=0) if rows else np.zeros(table.shape[1])


class Row:
    """One row of a batch: ids and codes of the candidate and of the real listens."""

    def __init__(self, weights, batch, row):
        self.weights = weights
        real = batch.history_mask_BT[row].numpy() > 0
        self.target = (int(batch.target_ids_B[row]), batch.target_codes_BFL[row].numpy())
        self.listens = list(
            zip(
                batch.history_ids_BT[row].numpy()[real],
                batch.history_codes_BTFL[row].numpy()[real],
                strict=True,
            )
        )

    def item(self, item, families, prefix="items"):
        """[e^r, e^z ...] of one (id, codes)."""
        track, codes = item
        fields = [self.weights[f"{prefix}.track_embedding.weight"][track]]
        for place, family in enumerate(families):
            table = self.weights[f"{prefix}.code_embeddings.{place}.table.weight"]
            fields.append(code_embedding(table, codes[family]))
        return np.concatenate(fields)

    def mean(self, families, prefix="items"):
        """Mean item of the history, zeros without a listen."""
        total = np.zeros(len(self.item(self.target, families, prefix)))
        for listen in self.listens:
            total += self.item(listen, families, prefix) / len(self.listens)
        return total


def din(row, numbers):
    table = row.weights["track_embedding.weight"]
    target = table[row.target[0]]
    interest = attention(row.weights, "attention", [table[i] for i, _ in row.listens], target)
    return tower(row.weights, [interest, target, *numbers])


def din_sid(row, numbers, family=0):
    target = row.item(row.target, [family])
    keys = [row.item(listen, [family]) for listen in row.listens]
    interest = attention(row.weights, "attention", keys, target)
    return tower(row.weights, [interest, target, *numbers])


def mcca(row, numbers, sequences=((0, JOINT), (1, JOINT), (2, JOINT)), targets=(JOINT,)):
    """`sequences`: (family of the keys, family of the query); `targets`: what the MLP sees."""
    w = row.weights
    place = {family: number for number, (family, _) in enumerate(sequences)}

    def embed(family, codes):
        table = w[f"code_embeddings.{place[family]}.table.weight"]
        return code_embedding(table, codes[family])

    parts = [
        attention(
            w,
            f"code_attentions.{place[family]}",
            [embed(family, codes) for _, codes in row.listens],
            embed(query, row.target[1]),
        )
        for family, query in sequences
    ]
    ids = w["track_embedding.weight"]
    target = ids[row.target[0]]
    parts.append(attention(w, "track_attention", [ids[i] for i, _ in row.listens], target))
    parts += [target, *(embed(family, row.target[1]) for family in targets)]
    return tower(w, [*parts, *numbers])


def mcca_wo_msc(row, numbers):
    return mcca(row, numbers, sequences=((JOINT, JOINT),), targets=(JOINT,))


def mcca_wo_mjc(row, numbers):
    return mcca(row, numbers, sequences=((0, 0), (1, 1)), targets=(0, 1))


def dnn(row, numbers):
    families = range(F)
    return tower(row.weights, [row.mean(families), row.item(row.target, families), *numbers])


def deepfm(row, numbers):
    families = range(F)
    flat = np.concatenate([row.item(row.target, families), row.mean(families)])
    fields = flat.reshape(2 * (1 + F), -1)
    pairs = sum(
        fields[i] @ fields[j] for i in range(len(fields)) for j in range(i + 1, len(fields))
    )
    first = row.item(row.target, families, "first_order").sum()
    first += row.mean(families, "first_order").sum()
    return first + pairs + tower(row.weights, [flat, *numbers])


def sim(row, numbers, top_k=10, search="soft"):
    families = range(F)
    target = row.item(row.target, families)
    scored = []
    for position, listen in enumerate(row.listens):
        item = row.item(listen, families)
        if search == "soft":
            relevance = item @ target
        else:
            relevance = 0
            for mine, wanted in zip(listen[1][JOINT], row.target[1][JOINT], strict=True):
                if mine != wanted or wanted == MISSING_CODE:
                    break
                relevance += 1
        scored.append((relevance, position, item))
    kept = sorted(scored, key=lambda one: one[:2])[-top_k:]
    interest = attention(row.weights, "attention", [item for _, _, item in kept], target)
    return tower(row.weights, [interest, target, *numbers])


def layer_norm(weights, name, x):
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def transformer(row, numbers, heads=4, layers=2):
    w, families = row.weights, range(F)
    position = w["position.weight"]
    token = linear(w, "to_token", row.item(row.target, families))
    tokens = [
        linear(w, "to_token", row.item(listen, families)) + position[len(row.listens) - place]
        for place, listen in enumerate(row.listens)
    ]
    x = np.stack([*tokens, token + position[0]])
    width = x.shape[1]
    for block in range(layers):
        name = f"blocks.{block}"
        projections = [w[f"{name}.to_query.weight"], w[f"{name}.to_key_value.weight"]]
        qkv = layer_norm(w, f"{name}.before_attention", x) @ np.concatenate(projections).T
        mixed = np.zeros_like(x)
        for head in range(heads):
            place = slice(head * width // heads, (head + 1) * width // heads)
            q, k, v = (qkv[:, part * width : (part + 1) * width][:, place] for part in range(3))
            scores = np.exp(q @ k.T / math.sqrt(width // heads))
            mixed[:, place] = scores / scores.sum(1, keepdims=True) @ v
        x = x + mixed @ w[f"{name}.from_heads.weight"].T
        wide = layer_norm(w, f"{name}.before_wide", x) @ w[f"{name}.widen.weight"].T
        wide = wide + w[f"{name}.widen.bias"]
        wide = wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2
        x = x + wide @ w[f"{name}.narrow.weight"].T + w[f"{name}.narrow.bias"]
    return tower(w, [layer_norm(w, "norm", x[-1]), token, *numbers])


FORMULAS = {
    "mcca": mcca,
    "mcca_wo_msc": mcca_wo_msc,
    "mcca_wo_mjc": mcca_wo_mjc,
    "din": din,
    "din_sid": din_sid,
    "dnn": dnn,
    "deepfm": deepfm,
    "sim": sim,
    "transformer": transformer,
}


def expected_logits(model, weights, batch, **options):
    """Logits (B,); `options` as the formula of `model` takes them."""
    logits = []
    for row in range(B):
        numbers = []
        if batch.numbers_BN is not None:  # one count, then two numbers of the context
            x = batch.numbers_BN[row].numpy().copy()
            x[0] = np.log(1 + x[0])
            z = (x - weights["numbers.mean_N"]) / weights["numbers.spread_N"]
            numbers = [np.where(np.isnan(z), 0, z)]
        logits.append(FORMULAS[model](Row(weights, batch, row), numbers, **options))
    return np.array(logits)
