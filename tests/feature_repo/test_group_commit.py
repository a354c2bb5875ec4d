"""Calls that come while one runs share the next run, its results and its error."""

import threading

import pytest

from feature_repo.group_commit import GroupCommit


def test_calls_that_come_meanwhile_share_one_run():
    started, go, groups = threading.Event(), threading.Event(), []

    def work(items):
        groups.append(sorted(items))
        started.set()
        go.wait()
        return [item * 10 for item in items]

    commits: GroupCommit[int, int] = GroupCommit(work)
    results = {}
    threads = [
        threading.Thread(target=lambda n=n: results.setdefault(n, commits.do(n))) for n in range(9)
    ]
    threads[0].start()
    started.wait()
    for thread in threads[1:]:
        thread.start()
    while len(commits._group.items) < 8:  # until all eight wait
        pass
    go.set()
    for thread in threads:
        thread.join()
    assert groups == [[0], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert results == {n: n * 10 for n in range(9)}


def test_an_error_reaches_every_call_of_its_group_and_no_other():
    def work(items):
        if 1 in items:
            raise OSError("disk")
        return items

    commits: GroupCommit[int, int] = GroupCommit(work)
    with pytest.raises(OSError, match="disk"):
        commits.do(1)
    assert commits.do(2) == 2
