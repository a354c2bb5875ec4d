"""Another team's ranker: logistic regression on features that it did not make.

    python train_and_rank.py --repo WORKSPACE --rows rows.parquet --user 7 --tracks 1,2,3

Uses Feast's own calls alone: `get_historical_features` to learn, `get_online_features` to rank.
Both give rows of the same columns, so one function turns them into the model's input.
"""

import argparse
import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from feast import FeatureStore
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

SERVICES = {"track_id": "track_content", "user_id": "user_taste"}
CODES = "joint_sid"
LISTENS = "seq_track_ids"
COUNTS = ("track_plays_28d", "track_skips_28d", "user_plays_28d", "user_skips_28d")


def offline_rows(store: FeatureStore, rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` (user_id, track_id, event_timestamp, ...) with the features as they were then."""
    for service in SERVICES.values():
        features = store.get_feature_service(service)
        rows = store.get_historical_features(entity_df=rows, features=features).to_df()
    return rows


def online_rows(store: FeatureStore, user: int, tracks: list[int]) -> pd.DataFrame:
    """The features of now, one row a track. Two reads: the user's features once, not per track."""
    read = {}
    for key, entities in (("track_id", tracks), ("user_id", [user])):
        read[key] = store.get_online_features(
            features=store.get_feature_service(SERVICES[key]),
            entity_rows=[{key: entity} for entity in entities],
        ).to_df()
    return read["track_id"].merge(read["user_id"], how="cross")


def first_codes(store: FeatureStore, tracks: set[int], moment: datetime) -> dict[int, int]:
    """The coarsest code of each track: what it is, roughly. Tracks without one are left out."""
    rows = pd.DataFrame({"track_id": sorted(tracks), "event_timestamp": moment})
    features = store.get_feature_service(SERVICES["track_id"])
    found = store.get_historical_features(entity_df=rows, features=features).to_df()
    codes = zip(found["track_id"], found[CODES], strict=True)
    return {track: int(code[0]) for track, code in codes if code is not None and len(code)}


def model_input(rows: pd.DataFrame, codes: dict[int, int]) -> np.ndarray:
    """float64 (rows, 3 + counts): history's length, how much of it is this very track, how much
    of it has this track's first code; then the counts, nothing counted as 0."""
    taste = []
    for track, listens in zip(rows["track_id"], rows[LISTENS], strict=True):
        heard = [] if listens is None else list(listens)
        alike = sum(codes.get(other, -1) == codes.get(track, -2) for other in heard)
        taste.append([len(heard), heard.count(track), alike / max(len(heard), 1)])
    counts = rows[list(COUNTS)].astype(float).fillna(0.0)
    return np.hstack([np.array(taste, dtype=float), np.log1p(counts.to_numpy())])


def train(x: np.ndarray, labels: np.ndarray) -> tuple[Pipeline, float]:
    """The model, learned from the first four fifths, and its area under the curve on the rest."""
    cut = len(x) * 4 // 5
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x[:cut], labels[:cut])
    return model, roc_auc_score(labels[cut:], model.predict_proba(x[cut:])[:, 1])


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--repo", "--rows", "--tracks"):
        parser.add_argument(name, required=True)
    parser.add_argument("--user", required=True, type=int)
    arguments = parser.parse_args()
    tracks = [int(track) for track in arguments.tracks.split(",")]

    store = FeatureStore(repo_path=arguments.repo)
    rows = pd.read_parquet(arguments.rows).sort_values("event_timestamp", ignore_index=True)
    seen = offline_rows(store, rows)
    now = online_rows(store, arguments.user, tracks)
    listened = {
        track
        for listens in [*seen[LISTENS], *now[LISTENS]]
        if listens is not None
        for track in listens
    }
    codes = first_codes(store, listened | set(seen["track_id"]) | set(tracks), datetime.now(UTC))
    model, auc = train(model_input(seen, codes), seen["label"].to_numpy())
    scores = model.predict_proba(model_input(now, codes))[:, 1]
    ranked = [
        {"track_id": tracks[place], "score": float(scores[place])} for place in np.argsort(-scores)
    ]
    print(
        json.dumps({"rows": len(seen), "auc": float(auc), "user": arguments.user, "ranked": ranked})
    )


if __name__ == "__main__":
    main()
