"""Mean ranks, Friedman's test and Nemenyi's critical difference, against figures known by hand."""

import pytest

from workflow.ranks import Ranking, ranking


def test_ranks_are_means_over_tasks_and_ties_share_them():
    found = ranking({"a": [90, 80, 70, 60, 50], "b": [80, 80, 60, 50, 40], "c": [70, 10, 50, 40, 30]})
    assert found.means == pytest.approx({"a": 1.1, "b": 1.9, "c": 3.0})
    assert found.tasks == 5 and found.p < 0.05


@pytest.mark.parametrize("methods, tasks, difference", [(4, 14, 1.25), (5, 30, 1.11), (10, 10, 4.28)])
def test_the_critical_difference_is_the_published_one(methods, tasks, difference):
    """q at 5 % is 2.569, 2.728 and 3.164 for 4, 5 and 10 methods (Demšar, 2006, Table 5)."""
    scores = {str(index): [(index * 7 + task * 3) % 11 for task in range(tasks)] for index in range(methods)}
    assert ranking(scores).difference == pytest.approx(difference, abs=0.01)


def test_equal_scores_tell_nothing_apart():
    found = ranking({name: [50.0] * 6 for name in "abc"})
    assert found.p == 1 and set(found.means.values()) == {2.0}


def test_a_clique_is_a_longest_run_within_the_difference():
    found = Ranking({"a": 1.0, "b": 1.8, "c": 2.5, "d": 4.0}, tasks=9, p=0.01, difference=1.0)
    assert found.cliques() == [("a", "b"), ("b", "c")]
    inside = Ranking({"a": 1.0, "b": 1.5, "c": 1.9, "d": 4.0}, tasks=9, p=0.01, difference=1.0)
    assert inside.cliques() == [("a", "b", "c")]
