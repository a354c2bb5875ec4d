"""Hidden tastes: each listener has a few interests, each an anchor in the music with weights.

An interest is drawn from a track of the catalogue: it likes tracks that agree with that one in the
traits it cares for (timbre and pace are only in the sound; region, type, metre and mode are also in
the text). A listener likes a track as much as the interest that likes it best, about.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

CATEGORIES = {"region": 0.7, "tune_type": 1.1, "metre": 0.7, "mode": 0.7, "timbre": 1.6}
"""Traits that agree or do not, with how much listeners care for them on average."""
MEASURES = {"pace": 1.2, "height": 0.8}
"""Traits that agree more or less: standardised log of notes a second, and mean pitch."""
TRAITS = (*CATEGORIES, *MEASURES)
IMPORTANCE = np.array([*CATEGORIES.values(), *MEASURES.values()])
MEASURE_WIDTH = 0.7
WEIGHT_SHAPE = 0.8
"""Shape of the Gamma that spreads the weights: under 1, a listener cares for few traits."""
INTEREST_COUNTS = (1, 2, 3)
INTEREST_COUNT_SHARES = (0.25, 0.45, 0.30)
INTEREST_SHARPNESS = 2.0


@dataclass(frozen=True)
class Traits:
    """What the tracks really are, as arrays: codes of each category, standardised measures."""

    codes: dict[str, np.ndarray]
    measures: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.measures["pace"])


@dataclass(frozen=True)
class Taste:
    """One listener's interests: anchors (track rows), weights (interest, trait), strengths."""

    anchors: np.ndarray
    weights: np.ndarray
    strengths: np.ndarray


def traits_of(truth: pa.Table) -> Traits:
    """Reads the traits from the truth table of the tracks."""
    codes = {
        category: truth[category].combine_chunks().dictionary_encode().indices.to_numpy()
        for category in CATEGORIES
    }
    measures = {
        "pace": standardise(np.log(truth["notes_per_second"].to_numpy())),
        "height": standardise(truth["mean_pitch"].to_numpy()),
    }
    return Traits(codes, measures)


def standardise(values: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1; all 0 when the values are all the same."""
    centred = values - values.mean()
    spread = centred.std()
    return centred / spread if spread > 0 else centred


def draw_taste(traits: Traits, random: np.random.Generator) -> Taste:
    """A listener's interests, each around a track of the catalogue."""
    count = int(random.choice(INTEREST_COUNTS, p=INTEREST_COUNT_SHARES))
    return Taste(
        anchors=random.integers(len(traits), size=count),
        weights=IMPORTANCE * random.gamma(WEIGHT_SHAPE, size=(count, len(TRAITS))),
        strengths=random.dirichlet(np.full(count, 3.0)),
    )


def interest_scores(taste: Taste, traits: Traits) -> np.ndarray:
    """How much each interest likes each track: (interests, tracks), standardised by interest."""
    scores = []
    for anchor, weights in zip(taste.anchors, taste.weights, strict=True):
        score = np.zeros(len(traits))
        for weight, trait in zip(weights, TRAITS, strict=True):
            if trait in CATEGORIES:
                agreement = (traits.codes[trait] == traits.codes[trait][anchor]).astype(float)
            else:
                distance = traits.measures[trait] - traits.measures[trait][anchor]
                agreement = np.exp(-((distance / MEASURE_WIDTH) ** 2) / 2)
            score += weight * agreement
        scores.append(standardise(score))
    return np.stack(scores)


def match(taste: Taste, scores: np.ndarray) -> np.ndarray:
    """How well each track fits the listener: a soft maximum over interests, standardised."""
    weighted = taste.strengths[:, None] * np.exp(INTEREST_SHARPNESS * scores)
    return standardise(np.log(weighted.sum(axis=0)))
