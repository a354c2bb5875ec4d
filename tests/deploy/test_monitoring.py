"""Alerts, scraping and dashboard of the ranking: they ask for what a serving process exports.

`promtool` (Debian package prometheus) checks and runs the alerts; without it those tests skip.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml
from promql_parser import AggregateExpr, BinaryExpr, Call, VectorSelector

from serving.metrics import DEGRADATIONS, EVENTS, REJECTIONS, ROUTES, STAGES
from tests.deploy.served_metrics import served_metrics
from tests.deploy.test_deploy import DEPLOY

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def metrics():
    return served_metrics()


SET_BY_PROMETHEUS = {"instance", "job", "pod"}
VALUES = {
    "stage": set(STAGES),
    "route": set(ROUTES),
    "reason": {*DEGRADATIONS, *REJECTIONS},
    "outcome": {"full", "degraded"},
    "slot": {"live", "canary", "shadow"},
    "status": set(EVENTS),
    "side": {"candidates", "history"},
}


def selectors(expression):
    """Every vector selector of a PromQL expression, with the labels that are asked of it."""
    if isinstance(expression, VectorSelector):
        yield expression, set()
        return
    asked = set()
    if isinstance(expression, AggregateExpr) and expression.modifier is not None:
        asked = set(expression.modifier.labels)
    for child in children(expression):
        for selector, inner in selectors(child):
            yield selector, inner | asked


def children(expression):
    if isinstance(expression, BinaryExpr):
        return [expression.lhs, expression.rhs]
    if isinstance(expression, Call):
        return [one for one in expression.args if not isinstance(one, float | str)]
    found = (getattr(expression, name, None) for name in ("expr", "vector_selector"))
    return [one for one in found if one is not None]


def check_query(text, metrics):
    """The expression parses, and names metrics, labels and values that are exported."""
    found = list(selectors(promql_parser.parse(text)))
    assert found, text
    for selector, asked in found:
        assert selector.name in metrics, f"{selector.name} is not exported"
        known = metrics[selector.name] | SET_BY_PROMETHEUS
        matchers = selector.matchers.matchers
        used = asked | {matcher.name for matcher in matchers}
        assert used <= known, f"{selector.name} has no labels {used - known}"
        for matcher in matchers:
            wanted = set(matcher.value.split("|"))
            assert wanted <= VALUES[matcher.name], f"{matcher.name} is never one of {wanted}"


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("rate(crescendo_ansers_total[5m])", "crescendo_ansers_total is not exported"),
        ("sum by (path) (rate(crescendo_answers_total[5m]))", "no labels {'path'}"),
        ('rate(crescendo_answers_total{outcome="fine"}[5m])', "never one of {'fine'}"),
        ("1 + max(crescendo_candidates_max)", "crescendo_candidates_max is not exported"),
    ],
)
def test_a_wrong_query_would_be_found(metrics, query, reason):
    with pytest.raises(AssertionError, match=re.escape(reason)):
        check_query(query, metrics)


def alerts():
    text = (DEPLOY / "prometheus" / "serving_alerts.yaml").read_text()
    (group,) = yaml.safe_load(text)["groups"]
    return group["rules"]


def test_alerts_ask_for_what_is_exported(metrics):
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    for rule in alerts():
        check_query(rule["expr"], metrics)
        assert rule["labels"]["severity"] in ("page", "warn")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_every_alert_is_tested():
    tested = (HERE / "serving_alerts_test.yaml").read_text()
    for rule in alerts():
        assert rule["alert"] in tested, rule["alert"]


@pytest.fixture(scope="module")
def promtool():
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is missing: apt-get install prometheus")

    def run(*words):
        ran = subprocess.run([path, *map(str, words)], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    return run


@pytest.mark.parametrize("name", ["alerts.yaml", "serving_alerts.yaml"])
def test_prometheus_takes_the_rules(promtool, name):
    promtool("check", "rules", DEPLOY / "prometheus" / name)


def test_alerts_fire_when_they_should_and_only_then(promtool, tmp_path):
    rules = DEPLOY / "prometheus" / "serving_alerts.yaml"
    tests = (HERE / "serving_alerts_test.yaml").read_text().replace("RULES", str(rules))
    (tmp_path / "tests.yaml").write_text(tests)
    promtool("test", "rules", tmp_path / "tests.yaml")


def scrape():
    return yaml.safe_load((DEPLOY / "prometheus" / "scrape.yaml").read_text())


def test_prometheus_takes_the_scrape_configuration(promtool, tmp_path):
    configuration = scrape()
    for job in configuration["scrape_configs"]:
        if job.pop("kubernetes_sd_configs", None):  # Debian builds it without Kubernetes
            job["static_configs"] = [{"targets": ["127.0.0.1:30000"]}]
    path = tmp_path / "prometheus.yaml"
    path.write_text(yaml.safe_dump(configuration))
    for name in configuration["rule_files"]:
        shutil.copy(DEPLOY / "prometheus" / name, tmp_path)
    promtool("check", "config", path)


def test_prometheus_keeps_the_ports_of_the_replicas():
    *_, job = scrape()["scrape_configs"]
    assert job["kubernetes_sd_configs"] == [{"role": "pod"}]
    by_label, by_port, _ = job["relabel_configs"]
    assert by_label["source_labels"] == ["__meta_kubernetes_pod_label_app_kubernetes_io_name"]
    service = yaml.safe_load((DEPLOY / "kuberay" / "rayservice.yaml").read_text())["spec"]
    (workers,) = service["rayClusterConfig"]["workerGroupSpecs"]
    template = workers["template"]
    assert template["metadata"]["labels"] == {"app.kubernetes.io/name": by_label["regex"]}
    (container,) = template["spec"]["containers"]
    kept = [p["name"] for p in container["ports"] if re.fullmatch(by_port["regex"], p["name"])]
    assert kept == [f"replica-{number}" for number in range(8)]


def test_the_dashboard_asks_for_what_is_exported(metrics):
    board = json.loads((DEPLOY / "grafana" / "serving.json").read_text())
    assert board["uid"]
    panels = board["panels"]
    (source,) = board["templating"]["list"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered = set()
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        place = panel["gridPos"]
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & covered, f"{panel['title']} lies over another panel"
        assert max(x for x, _ in cells) < 24
        covered |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == f"${{{source['name']}}}"
            check_query(target["expr"].replace("$__rate_interval", "1m"), metrics)


def test_every_metric_of_ours_is_on_the_dashboard(metrics):
    text = (DEPLOY / "grafana" / "serving.json").read_text()
    for name in metrics:
        family = re.sub(r"_(bucket|sum|count|total|created)$", "", name)
        if name.startswith("crescendo_"):
            assert family in text, family
