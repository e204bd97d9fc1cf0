"""What a reader does: sort, filter, choose columns, follow links, download, and all of it from the keyboard."""

import pytest

from tests.browser import made_up
from tests.browser.conftest import until
from workflow import report_links as links
from workflow import verdicts

SCORES = "#table-accuracy-1"
SUMMARY = "#table-summary-1"


def column(page, title, table=SCORES):
    """The rows' labels in the order shown, and what stands in the column of that head."""
    script = """([table, title]) => {
      const heads = [...document.querySelectorAll(`${table} thead th`)];
      const index = heads.findIndex(head => head.dataset.label === title || head.textContent.trim() === title);
      const rows = [...document.querySelectorAll(`${table} tbody tr[data-method]`)];
      return rows.map(row => [row.dataset.method, row.cells[index].textContent.trim()]);
    }"""
    return dict(page.evaluate(script, [table, title]))


def head(page, title, table=SCORES):
    return page.locator(f"{table} thead th[data-label='{title}']")


def shown(page, route=None):
    """The index, or the page of a route, with its tables furnished."""
    page.locator(SCORES if route is None else "#page h1").first.scroll_into_view_if_needed()
    if route is None:
        page.locator(f"{SCORES} thead th[class*=dt-orderable]").first.wait_for()


def at(page, route):
    """Wait for the address: it is told a moment after what changed it."""
    until(page, "route => location.href.endsWith(route)", route)


def sort(page, title, order):
    """Click on a head and wait for its order: ascending, descending or null."""
    head(page, title).click()
    script = "([table, title, order]) => document.querySelector(`${table} [data-label='${title}']`).ariaSort === order"
    until(page, script, [SCORES, title, order])


def test_a_click_on_a_head_sorts_and_words_stay_last_in_both_orders(site):
    page = site.go()
    shown(page)
    by_hand = list(column(page, "method"))
    of_methods = ["lora", "houlsby", "ia3", "bitfit"]  # by falling accuracy on RTE; the hostile one has none
    sort(page, "rte, accuracy, %", "ascending")
    assert list(column(page, "method")) == ["head", "full", *reversed(of_methods), made_up.EVIL["label"]]
    sort(page, "rte, accuracy, %", "descending")
    assert list(column(page, "method")) == ["full", "head", *of_methods, made_up.EVIL["label"]]
    sort(page, "rte, accuracy, %", None)
    assert list(column(page, "method")) == by_hand


def test_filters_take_rows_from_every_table(site):
    page = site.go()
    shown(page)
    everyone = set(column(page, "method"))
    page.select_option("#filters [name=family]", "lowrank")
    assert set(column(page, "method")) == {"lora", made_up.EVIL["label"]}
    page.select_option("#filters [name=status]", "oom")
    assert set(column(page, "method")) == {made_up.EVIL["label"]}
    page.click("#filters [type=reset]")
    until(page, f"document.querySelectorAll('{SCORES} tbody tr[data-method]').length > 1")
    assert set(column(page, "method")) == everyone
    page.fill("#filters [name=method]", "houl fit")
    assert set(column(page, "method")) == {"houlsby", "bitfit"}
    assert page.locator("#filters output").inner_text() == "2 of 7 rows"
    page.locator(SUMMARY).scroll_into_view_if_needed()
    assert set(column(page, "method", SUMMARY)) == {"houlsby", "bitfit"}, "in a table that came later too"


def test_columns_can_be_left_out_and_taken_back(site):
    page = site.go()
    shown(page)
    page.locator("#accuracy").get_by_role("button", name="Columns").click()
    item = page.locator(".dt-button-collection").get_by_text("mrpc, accuracy, %")
    item.click()
    assert head(page, "mrpc, accuracy, %").count() == 0 and head(page, "rte, accuracy, %").count() == 1
    item.click()
    assert head(page, "mrpc, accuracy, %").is_visible()


def test_from_a_table_to_a_method_a_cell_and_back(site, study):
    page = site.go()
    shown(page)
    titles = [page.title()]
    page.locator(f"{SCORES} tbody a", has_text="lora").first.click()
    page.locator("#page h1", has_text="lora").wait_for()
    titles.append(page.title())
    at(page, links.method("lora"))
    assert not page.locator("#index").is_visible()
    assert page.evaluate("document.activeElement.tagName") == "H1", "readers of the screen are told"
    words = page.locator("#page").inner_text()
    assert "arXiv:2106.09685" in words and "LoRA: Low-Rank Adaptation" in words and "91.3" in words and "1,000" in words

    seed = made_up.of(study.grid, "lora", "sst2", 1)
    page.locator(f"#page a[href='{links.cell(seed.key)}']").first.click()
    page.locator("#page h1", has_text="seed 1").wait_for()
    titles.append(page.title())
    words = page.locator("#page").inner_text()
    assert f"--key {seed.grid_key}" in words and "0.921" in words and "node1" in words
    assert page.locator("#page svg.curve, #page svg.plot").count() == 2
    assert len(set(titles)) == 3

    page.go_back()
    page.locator("#page h1", has_text="lora").wait_for()
    page.go_back()
    page.locator("#index").wait_for()
    assert page.title() == titles[0] and not page.locator("#page").is_visible()


@pytest.mark.parametrize(
    "label, says",
    [
        ("lora", "Conforms: passed 21 checks, 2 not applicable on {} (plugin file and checks unchanged since)."),
        ("ia3", "Does not conform: failed 2 checks, passed 19 checks, 2 not applicable on {} (plugin file"),
        ("bitfit", "Stale: the plugin file has changed since it passed 21 checks, 2 not applicable on {}."),
        ("houlsby", "Not run here."),
    ],
)
def test_the_page_of_a_method_says_whether_it_conforms(site, study, label, says):
    page = site.go(links.method(label))
    said = page.locator("#page p.conformance").inner_text()
    date = verdicts.read("lora", study.root).date
    assert said.startswith(says.format(date)), said
    assert page.locator("pre.command", has_text="python -m workflow check methods/").count() == 1
    if label == "ia3":
        assert "3.1 count: expected 2, found 1" in page.locator("#page").inner_text()


def test_a_link_to_a_comparison_can_be_opened_by_itself(site):
    page = site.go(links.compare("lora", "houlsby"))
    page.locator("#page h1", has_text="houlsby").wait_for()
    assert not page.locator("#index").is_visible()
    assert page.locator("#page a.compare-link").get_attribute("href") == links.compare("lora", "houlsby")
    page.locator("#page select").nth(1).select_option("ia3")
    page.locator("#page h1", has_text="ia3").wait_for()
    at(page, links.compare("lora", "ia3"))


def test_the_page_of_all_cells_leads_to_every_failure(site):
    page = site.go()
    page.locator(".counts a", has_text="oom").click()
    page.locator("#page table.atlas tbody tr").first.wait_for()
    assert page.locator("#page table.atlas tbody tr").count() == 1
    assert made_up.EVIL["reason"] in page.locator("#page").inner_text()
    site.follow(links.cells())
    page.locator("#page .dt-info", has_text="25").wait_for()


def test_a_table_is_downloaded_as_the_file_that_tables_writes(site, study):
    page = site.go()
    for name in ("accuracy.csv", "accuracy.md", "accuracy.tex", "memory.csv"):
        with page.expect_download() as waited:
            page.locator(f".download[data-file='{name}']").click()
        assert waited.value.suggested_filename == name
        assert waited.value.path().read_bytes() == (study.tables / name).read_bytes()


def test_a_figure_is_downloaded_as_a_picture(site):
    page = site.go()
    begins = {"svg": b"<svg", "png": b"\x89PNG\r\n"}
    for kind, first in begins.items():
        with page.expect_download() as waited:
            page.locator(f"figure:visible .download[data-figure={kind}]").first.click()
        assert waited.value.suggested_filename.endswith(f".{kind}")
        assert waited.value.path().read_bytes().startswith(first)


def test_the_pointer_on_a_marker_tells_what_it_is(site):
    page = site.go()
    page.locator(".gallery figure:visible g.mark[data-method=houlsby]").first.hover()
    assert "houlsby" in page.locator("#tip").inner_text()


NOTE_WHAT_HAS_FOCUS = """() => {
  window.focused = [];
  document.addEventListener("focusin", ({ target }) => {
    const style = getComputedStyle(target), box = target.getBoundingClientRect();
    const name = `${target.tagName}${target.id && "#" + target.id} ${(target.textContent || target.name || "").trim()}`;
    const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
    window.focused.push([name.slice(0, 40), ring && box.width > 0 && box.height > 0]);
  });
}"""


def test_the_tab_key_reaches_everything_and_shows_where_it_is(site):
    page = site.go()
    page.evaluate(NOTE_WHAT_HAS_FOCUS)
    for _ in range(120):
        page.keyboard.press("Tab")
    focused = page.evaluate("window.focused")
    assert focused[0][0].startswith("A Skip")
    assert [name for name, visible in focused if not visible] == []
    reached = {name for name, _ in focused}
    assert {"BUTTON#theme ◐", "A lora", "BUTTON CSV", "A How to read"} <= reached, sorted(reached)
    assert {"SELECT", "SUMMARY", "INPUT", "SPAN"} <= {name.split()[0] for name in reached}, sorted(reached)


def test_the_link_past_the_head_stays_on_the_page(site):
    page = site.go(links.method("lora"))
    page.locator("#page h1", has_text="lora").wait_for()
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.matches('#page h1')")
    at(page, links.method("lora"))
    page.evaluate("location.hash = ''")
    page.locator("#index").wait_for()
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    at(page, "#index")
    assert page.locator("#index").is_visible()


def test_a_head_sorts_and_the_theme_turns_by_keys(site):
    page = site.go()
    shown(page)
    before = list(column(page, "method"))
    focusable = (
        head(page, "rte, accuracy, %").locator("xpath=descendant-or-self::*[@tabindex='0' or self::button]").first
    )
    focusable.focus()
    page.keyboard.press("Enter")
    until(page, f"document.querySelector('{SCORES} th[aria-sort]') !== null")
    assert list(column(page, "method")) != before
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    assert page.evaluate(colour) != light
