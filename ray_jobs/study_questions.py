"""The questions that the paper raises, each as a set of variants to compare.

    crescendo study --question quantizers --question prefix --seeds 5

Each question makes the generations that it lacks (`study_generations.py`) from the options of one
base generation. Everything that a variant does not name is the same in all of them and was settled
before any of them was trained; nothing is chosen by what the test part says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from feature_repo.artifacts import Manifest
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.colistening import MODALITY as COLISTEN
from ray_jobs.colistening import WINDOW, ColisteningOptions, colistening
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.study import Question, Variant, check_counts, compare, of_model
from ray_jobs.study_generations import (
    base_generation,
    generation_of,
    like,
    register_offline,
    repeated_level_1,
)
from ray_jobs.train import TrainOptions


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    questions: tuple[str, ...]
    """Names of `QUESTIONS`."""
    seeds: int = 5
    parallel: int = 1
    """Runs that are trained at a time."""
    family: str = "text"
    """Whose IDs DIN is given in the questions of quantizers and prefix."""
    train: TrainOptions = field(default_factory=TrainOptions)
    """What all runs share; its `generation` is the base, the newest when not given."""

    def __post_init__(self) -> None:
        check_counts(self.seeds, self.parallel)
        unknown = sorted(set(self.questions) - set(QUESTIONS))
        if unknown or not self.questions or len(set(self.questions)) < len(self.questions):
            raise InputError(
                f"questions must be of {tuple(QUESTIONS)}, each once, got {self.questions}"
            )


def answer_questions(workspace: Workspace, options: QuestionOptions) -> dict[str, Any]:
    """Makes the generations, trains all variants, and writes each answer and the page.

    Returns `questions`: what `ray_jobs.study.compare` returned of each; and the `page`'s path.
    """
    base = base_generation(workspace, options.train.generation)
    asked = [QUESTIONS[name](workspace, base, options) for name in options.questions]
    generations = [variant.train.generation for question in asked for variant in question.variants]
    register_offline(workspace, [name for name in generations if name is not None])
    answers = compare(workspace, asked, options.seeds, options.parallel)
    return {"questions": answers, "page": str(workspace.reports / "study.html")}


def quantizers(workspace: Workspace, base: Manifest, options: QuestionOptions) -> Question:
    """DIN with IDs of one family, of every method (paper section 2.1, its second line)."""
    deeper = base.options["levels"] + 1
    recipes = {
        "psrq": _one_family(base, options, method="psrq", prefix_weight="auto"),
        "rq_kmeans": _rq(base, options),
        "rq_vae": _one_family(base, options, method="rq_vae"),
        "vq": _one_family(base, options, method="vq"),
        "pq": _one_family(base, options, method="pq", levels=deeper),
    }
    variants = [
        _with_ids(options, name, generation_of(workspace, recipe))
        for name, recipe in recipes.items()
    ]
    generation = variants[0].train.generation
    without = replace(of_model(options.train, "din"), generation=generation)
    return Question(
        name="quantizers",
        asks="Whose IDs help DIN most? The paper: PSRQ > RQ = RQ-VAE > VQ > PQ.",
        variants=(*variants, Variant(name="no IDs (din)", train=without)),
        notes=(
            _of_base(base, options.family),
            f"Levels as in the paper's comparison: VQ one, PQ one more than the others ({deeper}).",
        ),
    )


def prefix(workspace: Workspace, base: Manifest, options: QuestionOptions) -> Question:
    """PSRQ over prefix weights, and a control whose deeper levels say nothing (section 1.1)."""
    recipes = {
        "weight 0 (RQ)": _rq(base, options),
        "weight auto": _one_family(base, options, method="psrq", prefix_weight="auto"),
        "weight 0.5": _one_family(base, options, method="psrq", prefix_weight=0.5),
        "weight 1 (paper)": _one_family(base, options, method="psrq", prefix_weight=1.0),
    }
    generations = {name: generation_of(workspace, recipe) for name, recipe in recipes.items()}
    # Level 1 of all weights is the same book: the prefix begins with level 2.
    generations["level 1 repeated"] = repeated_level_1(workspace, generations["weight 0 (RQ)"])
    return Question(
        name="prefix",
        asks="Does the retained prefix help ranking, or is it redundancy?",
        variants=tuple(_with_ids(options, name, id_) for name, id_ in generations.items()),
        notes=(
            _of_base(base, options.family),
            "The control repeats RQ's level-1 code on every level: as many levels, nothing new.",
        ),
    )


def attention(workspace: Workspace, base: Manifest, options: QuestionOptions) -> Question:
    """MCCA, its ablations, DIN, and MCCA whose code tables start from the centroids."""
    shared = replace(options.train, generation=base.id)
    models = ("mcca", "mcca_wo_msc", "mcca_wo_mjc", "din")
    variants = [Variant(name=model, train=of_model(shared, model)) for model in models]
    centroids = replace(of_model(shared, "mcca"), code_start="centroids")
    return Question(
        name="attention",
        asks="What do MCCA's parts bring, and do code embeddings gain from the centroids?",
        variants=(*variants, Variant(name="mcca from centroids", train=centroids)),
        notes=(f"All on the IDs of generation {base.id}.",),
    )


def collaborative(workspace: Workspace, base: Manifest, options: QuestionOptions) -> Question:
    """MCCA on IDs of content, and on IDs that also see what is listened to together."""
    split = options.train.impressions
    made = colistening(workspace, ColisteningOptions(impressions=split))
    content = tuple(name for name in base.options["modalities"] if name != COLISTEN)
    recipes = {
        "content": like(base, method="psrq", prefix_weight="auto", modalities=content),
        "content + co-listening": like(
            base, method="psrq", prefix_weight="auto", modalities=(*content, COLISTEN)
        ),
    }
    return Question(
        name="collaborative",
        asks="Do IDs that also see co-listening rank better than IDs of content alone?",
        variants=tuple(
            Variant(
                name=name,
                train=replace(
                    of_model(options.train, "mcca"),
                    generation=generation_of(workspace, recipe),
                ),
            )
            for name, recipe in recipes.items()
        ),
        notes=(
            f"The co-listening vectors ({made['encoder_id']}: {made['ok']:,} of "
            f"{made['tracks']:,} tracks) are of the training part alone, of listens at most "
            f"{WINDOW} apart. They are one modality more: MCCA has one history more to attend to, "
            "and the joint IDs are of all modalities.",
        ),
    )


QUESTIONS: Mapping[str, Callable[[Workspace, Manifest, QuestionOptions], Question]] = {
    "quantizers": quantizers,
    "prefix": prefix,
    "attention": attention,
    "collaborative": collaborative,
}


def _one_family(base: Manifest, options: QuestionOptions, **changes: Any) -> QuantizeOptions:
    known = base.options["modalities"]
    if options.family not in known:
        raise InputError(
            f"family must be a modality of generation {base.id}, one of {tuple(known)}, "
            f"got {options.family!r}"
        )
    return like(base, modalities=(options.family,), **changes)


def _rq(base: Manifest, options: QuestionOptions) -> QuantizeOptions:
    """RQ, which is PSRQ with prefix weight 0: one generation for both names."""
    return _one_family(base, options, method="rq_kmeans")


def _with_ids(options: QuestionOptions, name: str, generation_id: str) -> Variant:
    train = replace(
        of_model(options.train, "din_sid"), family=options.family, generation=generation_id
    )
    return Variant(name=name, train=train)


def _of_base(base: Manifest, family: str) -> str:
    """The options of the IDs that were fixed beforehand."""
    options = base.options
    return (
        f"DIN with {family} IDs. Levels ({options['levels']}), codes a level ({options['codes']}), "
        f"preprocessing ({options['preprocess']}), seed ({options['seed']}), k-means iterations "
        f"({options['iterations']}) and RQ-VAE epochs ({options['epochs']}) of the fits are those "
        f"of generation {base.id}; no balance, no collision resolution."
    )
