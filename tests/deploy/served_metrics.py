"""What a serving process exports, whatever it has done so far."""

from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import ServingMetrics


def served_metrics():
    """Labels of each sample, by its name."""
    metrics = ServingMetrics()
    comparison = {"rankings": 1, "skipped": 0, "failed": 0, "top_overlap": 1.0}
    comparison |= {"mean_difference": 0.0, "rank_agreement": 1.0}
    status = {"live": "r", "canary": None, "shadow": {"release_id": "s", **comparison}}
    counts = {"loads": 1, "failed_loads": 0, "last_problem": None}
    metrics.follows(lambda: {**status, **counts}, lambda: 0)
    text = metrics.text().decode()
    # These have no sample without a loaded release, but a type.
    labels = {
        "crescendo_release_info": {"slot", "release_id", "model_id", "generation_id"},
        "crescendo_scores_bucket": {"release_id", "le"},
        "crescendo_score_drift_psi": {"release_id"},
        "crescendo_code_drift_psi": {"release_id", "family", "side"},
        "crescendo_newest_listen_age_seconds": set(),
    }
    for name in labels:
        assert f"# TYPE {name.removesuffix('_bucket')} " in text, name
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels
