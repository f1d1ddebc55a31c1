"""What pages name exists: links, anchors, files, functions; and every page can be reached."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links, prose

IDS = [str(page.relative_to(ROOT)) for page in PAGES]
# `path` `function`, `path`, `function`: in a table or in a sentence
NAMED = re.compile(r"`(dowser_pl/[\w/]+\.py)`(?:,| \|) `(\w+)(?:\(\))?`")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_and_anchors_lead_somewhere(page):
    for link in links(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if page.is_relative_to(ROOT / "docs"):
            assert target.is_relative_to(ROOT / "docs"), f"{page.name}: {link} is not in the site"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}, there are {sorted(anchors(target))}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_and_functions_that_are_named_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:dowser_pl|tools|configs|tests|benchmarks|docs|examples)/[\w/.\-]*\w\.\w+)`", text):
        assert (ROOT / path).is_file(), f"{page.name}: {path}"
    for path, name in NAMED.findall(text):
        assert re.search(rf"\b(def|class) {name}\b|^{name} = ", (ROOT / path).read_text(), re.MULTILINE), (path, name)


def test_the_readme_leads_into_the_code():
    found = NAMED.findall((ROOT / "README.md").read_text())
    assert len(found) >= 7
    assert {path.split("/")[1] for path, _ in found} >= {"importance", "functional", "methods", "masking", "patches"}


def test_every_page_is_reached_from_the_start_page():
    start = ROOT / "docs" / "index.md"
    seen, todo = set(), [start]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if "://" not in link]
        todo += [target for target in targets if target.suffix == ".md" and target.is_file()]
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} <= seen


def test_no_placeholder_is_left():
    for page in PAGES:
        assert not re.search(r"@@|TODO|FIXME|XXX", prose(page)), page
