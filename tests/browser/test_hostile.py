"""Labels, reasons, predictions, settings, hosts and packages that hold code are shown, and never run."""

from tests.browser import made_up
from tests.browser.made_up import EVIL
from workflow import report_links as links


def test_nothing_runs_on_any_page(site, study):
    page = site.go()
    shown = page.locator("body").inner_text()
    for route in made_up.pages(study.grid):
        site.follow(route)
        for handle in page.locator("#page summary").filter(visible=True).all():
            handle.click()
        shown += page.locator("#page").inner_text()
    assert page.evaluate("window.hasRun") == []
    assert page.locator("img, iframe, object, embed, base, body script + title").count() == 0
    for name, text in EVIL.items():
        assert text in shown or text.replace("  ", " ") in shown, f"the {name} is shown as it is"


def test_strings_in_the_address_do_not_run(site):
    page = site.go()
    evil = "<img src=x onerror=ran('address')>"
    for route in (links.method(evil), f"#/{evil}", "#/cell/%", links.compare(evil, "lora")):
        site.follow(route)
        assert "Not in this report" in page.locator("#page h1").inner_text(), route
    assert page.evaluate("window.hasRun") == []
