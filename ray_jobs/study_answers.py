"""What a study measures, and where the answer to each question lies: for its jobs and its pages."""

METRICS = ("auc", "gauc", "cold_auc", "logloss")
"""What every run is told by; a study also measures `cold_gauc`."""
MEASURES = ("auc", "gauc", "cold_auc", "cold_gauc", "logloss")
MODELS_STUDY = "models"
"""Name of a study of models that share everything else."""


def answer_file(question: str) -> str:
    """Where a question's answer lies under `reports/`."""
    return "study.json" if question == MODELS_STUDY else f"study-{question}.json"
