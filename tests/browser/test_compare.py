"""The compare page: its statistics are scipy's, and what it says of the made-up study is right."""

import numpy as np
import pytest
from scipy import stats

from tests.browser.made_up import PAIRED, SEEDS
from workflow import report_links as links
from workflow.registry import ROOT

STATISTICS = (ROOT / "reports" / "static" / "statistics.js").read_text()
COUNTS = [(0, 0), (0, 1), (1, 0), (5, 5), (4, 5), (0, 6), (31, 12), (200, 251), (3000, 3100), (9000, 700)]


@pytest.fixture
def calculator(browser):
    """A page that has the statistics alone."""
    page = browser.new_page()
    page.add_script_tag(content=STATISTICS)
    yield page
    page.close()


def test_mcnemars_p_is_that_of_scipys_binomial_test(calculator):
    found = calculator.evaluate("counts => counts.map(([a, b]) => mcnemar(a, b))", COUNTS)
    expected = [stats.binomtest(a, a + b).pvalue if a + b else 1.0 for a, b in COUNTS]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_the_interval_of_paired_seeds_is_scipys(calculator):
    rng = np.random.default_rng(0)
    t = [float(stats.t.ppf(0.975, freedom)) for freedom in range(1, 12)]
    for seeds in (2, 3, 5, 12):
        first, second = rng.normal(size=(2, seeds))
        found = calculator.evaluate("([d, t]) => pairedMean(d, t)", [(first - second).tolist(), t])
        interval = stats.ttest_rel(first, second).confidence_interval(0.95)
        assert found["n"] == seeds
        assert found["mean"] - found["half"] == pytest.approx(interval.low)
        assert found["mean"] + found["half"] == pytest.approx(interval.high)


def test_the_interval_of_paired_answers_is_that_of_the_shares_after_one_more_of_either_disagreement(calculator):
    first, second, n = 31, 12, 400
    differences = np.repeat([1, -1, 0], [first + 1, second + 1, n - first - second])
    half = stats.norm.ppf(0.975) * stats.sem(differences, ddof=0)
    found = calculator.evaluate("([a, b, n]) => pairedShares(a, b, n)", [first, second, n])
    assert found["mean"] == pytest.approx((first - second) / n)
    assert (found["low"], found["high"]) == pytest.approx((differences.mean() - half, differences.mean() + half))


def test_the_examples_that_one_alone_has_right_are_counted(calculator):
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 2, size=(2, 1001)).astype(bool)
    packed = [np.packbits(bits).tolist() for bits in (first, second)]
    found = calculator.evaluate("([a, b]) => disagreements(Uint8Array.from(a), Uint8Array.from(b))", packed)
    assert found == {"onlyFirst": int((first & ~second).sum()), "onlySecond": int((~first & second).sum())}


def test_the_page_says_what_scipy_says_and_why_where_there_are_no_pairs(site):
    page = site.go(links.compare("lora", "houlsby"))
    page.locator("#compare-table tbody tr").nth(2).wait_for()
    rows = page.evaluate("[...document.querySelectorAll('#compare-table tbody tr')].map(row => row.innerText)")
    of = {row.split("\t")[0].removeprefix("glue/"): row.replace("−", "-").split("\t") for row in rows}

    seeds = stats.ttest_rel(*(100 * np.array(SEEDS[method]) for method in ("lora", "houlsby")))
    low, high = seeds.confidence_interval(0.95)
    assert f"{low:+.2f} to {high:+.2f}" in of["sst2"] and "3 seeds" in of["sst2"]

    alone, other, n = PAIRED["lora"], PAIRED["houlsby"], sum(PAIRED.values())
    assert f"{100 * (alone - other) / n:+.2f}" in of["rte"]
    assert f"{stats.binomtest(alone, alone + other).pvalue:.3f}" in of["rte"]
    assert "lora is better" in of["rte"]

    assert "no paired data" in of["mrpc"] and any("no stored predictions" in text for text in of["mrpc"])
