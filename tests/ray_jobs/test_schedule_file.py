"""The schedule's file: the default one, and what a wrong one is told."""

import pytest
import yaml

from feature_repo.errors import InputError
from ray_jobs.schedule_file import DEFAULT_FILE, read_schedule


def test_the_default_schedule_is_read():
    default = read_schedule()
    assert {job.name for job in default.jobs} == {"nightly", "fresh"}
    assert default.job("nightly").cron == "30 0 * * *"
    with pytest.raises(InputError, match=r"no job 'weekly'; its jobs are nightly, fresh"):
        default.job("weekly")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cron": "61 0 * * *"}, "cron '61 0"),
        ({"cron": "0 0 * *"}, "five fields"),
        ({"cron": "0 0 * * 1"}, "weekday"),
        ({"every_s": 60}, "one of cron and every_s"),
        ({"cron": None}, "one of cron and every_s"),
        ({"run": "sequences"}, "run must be a list"),
        ({"run": []}, "run must list"),
        ({"run": ["sequences 'x"]}, "cannot split"),
        ({"attempts": 0}, "attempts must be at least 1"),
        ({"timeout_s": "long"}, "timeout_s must be a number of seconds, got 'long'"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"retries": 3}, "unknown field 'retries'"),
    ],
)
def test_a_wrong_schedule_names_file_field_and_value(tmp_path, change, reason):
    entry = {"cron": "0 3 * * *", "run": ["sequences"], **change}
    path = tmp_path / "schedule.yaml"
    path.write_text(yaml.safe_dump({"jobs": {"nightly": entry}}))
    with pytest.raises(InputError) as raised:
        read_schedule(path)
    assert reason in str(raised.value)
    assert str(path) in str(raised.value)
    assert str(DEFAULT_FILE) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("jobs: {}", "at least one job"),
        ("- a", "the file must be a mapping"),
        ("jobs: [a]", "jobs must be a mapping"),
        ("timezone: Mars\njobs: {a: {cron: 0 0 * * *, run: [x]}}", "timezone"),
        ("metrics_port: 70000\njobs: {a: {cron: 0 0 * * *, run: [x]}}", "metrics_port"),
        ("jobs: {'a/b': {cron: 0 0 * * *, run: [x]}}", "name may hold no"),
        ("{", "is not YAML"),
    ],
)
def test_a_wrong_schedule_file(tmp_path, text, reason):
    path = tmp_path / "schedule.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=reason):
        read_schedule(path)
    with pytest.raises(InputError, match="cannot read"):
        read_schedule(tmp_path / "none.yaml")
