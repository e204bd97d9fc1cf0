"""What a reader sees: enough contrast, light and dark, on a phone, on paper, and with scripts switched off."""

import pytest

from tests.browser import made_up
from tests.browser.contrast import faint

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
PAPER = {"viewport": {"width": 794, "height": 1123}}  # A4 at 96 dots an inch


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(study, opener, scheme):
    grid, file = study.grid, study.file
    site = opener(file, color_scheme=scheme)
    assert faint(site.go()) == []
    for route in made_up.one_of_each(grid):
        assert faint(site.follow(route)) == [], route


def test_the_page_is_dark_where_the_reader_prefers_it_and_the_button_turns_it(study, opener):
    light, dark = (opener(study.file, color_scheme=scheme).go() for scheme in ("light", "dark"))
    assert background(light) != background(dark)
    was_dark = background(dark)
    dark.click("#theme")
    assert background(dark) == background(light)
    dark.click("#theme")
    assert background(dark) == was_dark


def test_the_chosen_theme_outlives_a_change_of_page(site):
    page = site.go()
    light = background(page)
    page.click("#theme")
    dark = background(page)
    assert dark != light
    site.follow("#/method/lora")
    assert background(page) == dark


def test_nothing_is_wider_than_a_phone(study, opener):
    grid, file = study.grid, study.file
    site = opener(file, **PHONE)
    page = site.go()
    assert overhang(page) == 0
    for route in made_up.pages(grid):
        site.follow(route)
        assert overhang(page) == 0, route


def overhang(page):
    """Pixels by which the page is wider than its window, so that it scrolls sideways."""
    root = "document.documentElement"
    return page.evaluate(f"{root}.scrollWidth - {root}.clientWidth")


def test_paper_has_everything_but_what_is_for_clicking(study, opener):
    site = opener(study.file, **PAPER)
    page = site.go()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#theme, .download, input, select, nav").filter(visible=True).count() == 0
    assert page.locator("details:not([open])").count() == 0
    for section in page.locator("#index section").all():
        assert section.is_visible()
    assert "rgb(255, 255, 255)" in (
        background(page),
        page.evaluate("getComputedStyle(document.documentElement).backgroundColor"),
    )
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_dark_is_not_printed(study, opener):
    page = opener(study.file, color_scheme="dark").go()
    page.click("#theme")
    page.click("#theme")
    page.emulate_media(media="print", color_scheme="dark")
    red, green, blue = page.evaluate("getComputedStyle(document.body).color.match(/\\d+/g).slice(0, 3).map(Number)")
    assert max(red, green, blue) < 128, "ink is dark on paper"


def test_without_scripts_the_index_is_whole(study, opener):
    page = opener(study.file, java_script_enabled=False).go()
    words = page.locator("#index").inner_text()
    for there in ("lora", "houlsby", "one seed", "Provenance", "below control", "missing", "oom"):
        assert there in words
    assert page.locator("table.atlas").first.is_visible()
    assert page.locator("figure svg").first.is_visible()
    assert page.locator("button, input, select, .download, #page").filter(visible=True).count() == 0, "what cannot work"


def test_with_scripts_nothing_is_lost_from_the_tables(study, opener):
    bare, full = (opener(study.file, java_script_enabled=on).go() for on in (False, True))
    rows = [page.locator("table.atlas").first.locator("tbody tr").count() for page in (bare, full)]
    assert rows[0] == rows[1]
