"""Ten thousand cells: one file below 20 MB whose first screen, table of cells and pages take little work."""

import pytest

from tests.workflow import synthetic
from workflow import report
from workflow import report_links as links

CELLS = 10_000
LARGEST = 20_000_000  # bytes
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The grid and its report."""
    root = tmp_path_factory.mktemp("many")
    grid = synthetic.grid(root, CELLS)
    synthetic.store(root, grid.cells)
    return grid, report.build(grid, root)


class Work:
    """Seconds that the page's main thread has worked, by its own clock: other programs do not count."""

    def __init__(self, site):
        self.session = site.context.new_cdp_session(site.page)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def done(self) -> float:
        metrics = self.session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def test_ten_thousand_cells_are_one_file_that_takes_little_work(many, opener):
    grid, file = many
    assert len(grid.cells) == CELLS
    assert file.stat().st_size < LARGEST
    site = opener(file)
    work = Work(site)
    page = site.go()
    page.locator("#overview").wait_for()
    assert work.done() < 5, "the first screen"

    before = work.done()
    site.follow(links.cells())
    page.locator("#page table.atlas tbody tr").first.wait_for()
    assert "10,000" in page.locator("#page .dt-info").inner_text()
    assert page.locator("#page table.atlas tbody tr").count() <= 500
    assert work.done() - before < 5, "the table of all cells"

    before = work.done()
    of_one_model = sum(cell.model == "tiny-bert" for cell in grid.cells)
    page.locator("#page input[type=search]").fill("tiny-bert")
    page.locator("#page .dt-info", has_text=f"of {of_one_model:,}").wait_for()
    site.follow(links.cell(grid.cells[-1].key))
    assert grid.cells[-1].grid_key in page.locator("#page").inner_text()
    assert work.done() - before < 5, "a filter, and the page of a cell"
