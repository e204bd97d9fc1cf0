"""`snakemake --report`: Snakemake's own page holds the report and the tables, with captions and categories."""

import subprocess
import sys

import pytest

from workflow import products, registry


@pytest.fixture(scope="session")
def page_of_snakemake(study):
    """Snakemake's page over the made-up study, of which one cell has not run."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(registry.ROOT / "Snakefile"), "--nolock"]
    command += ["--cores", "1", "--config", "grid=config/study.yaml", "--report", "whole.html"]
    done = subprocess.run(
        command, cwd=study.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    return study.root / "whole.html"


def test_it_opens_with_every_file_in_its_category_and_the_report_inside(page_of_snakemake, study, opener):
    site = opener(page_of_snakemake)
    site.overlooked = ("cdn.tailwindcss.com should not be used",)  # said by a script inside Snakemake's page
    page = site.go()
    categories = page.evaluate("categories")
    folder = "results/study"
    names = products.table_names(study.grid)
    assert {name: [file for files in found.values() for file in files] for name, found in categories.items()} == {
        "Report": [f"{folder}/report/index.html"],
        "Tables": [f"{folder}/tables/{name}.csv" for name in sorted(names)],
        "Cells": [f"{folder}/tables/cells.csv"],
    }
    captions = page.evaluate("Object.values(results).map(result => result.caption)")
    assert len(set(captions)) == len(captions) == len(names) + 2 and all("<p>" in caption for caption in captions)
    assert "crosses fine-tuning methods" in page.inner_text("#app")

    page.get_by_role("link", name="Report", exact=True).click()
    page.locator("#app table a, #app table button").first.click()
    inside = page.frame_locator("iframe")
    inside.locator("#accuracy").wait_for(state="attached")
    inside.locator("a[href='#/method/lora']").first.click()
    inside.locator("#page h1, #page h2").filter(has_text="lora").first.wait_for()
