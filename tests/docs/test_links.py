"""Links, anchors and file names in everything that is written for people."""

import re
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers.pages import (
    PAGES,
    find_anchors,
    find_links,
    find_paths,
    read,
)
from tests.helpers.paths import ROOT


def problem(page, target):
    """What is wrong with a link of a page; None if nothing is."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        well_formed = (
            parts.scheme in ("http", "https")
            and re.fullmatch(r"([\w-]+\.)+[a-z]{2,}(:\d+)?", parts.netloc)
            and not re.search(r"[\s<>\"{}|\\^`]", target)
        )
        return None if well_formed else "is no address"
    path = ROOT / page if not parts.path else (ROOT / page).parent / unquote(parts.path)
    if parts.path.startswith("/"):
        return "is absolute"
    if not path.resolve().is_relative_to(ROOT.resolve()):
        return "leaves the repository"
    if not path.exists():
        return "is not there"
    if parts.fragment:
        if path.suffix != ".md":
            return "has an anchor, and is no page"
        if parts.fragment not in find_anchors(path.read_text()):
            return "has no such heading"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    wrong = {target: problem(page, target) for target in find_links(read(page))}
    assert {target: why for target, why in wrong.items() if why} == {}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
    if page == "CHANGELOG.md":
        pytest.skip("it names what was")
    assert [path for path in find_paths(read(page)) if not (ROOT / path).exists()] == []


def test_every_page_is_reached_from_the_front_page():
    reached, todo = set(), ["README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        for target in find_links(read(page)):
            parts = urlsplit(target)
            path = ((ROOT / page).parent / parts.path).resolve()
            if not parts.scheme and path.suffix == ".md":
                name = str(path.relative_to(ROOT.resolve()))
                todo += [name] if name not in reached else []
    assert reached == set(PAGES)


def test_the_front_page_is_one_page():
    assert len(read("README.md").splitlines()) <= 150


# ---- what the tests above rest on ----


@pytest.mark.parametrize(
    "heading, anchor",
    [
        ("# Model zoo", "model-zoo"),
        ("## What's new? (v2.0)", "whats-new-v20"),
        ("### Faster & better", "faster--better"),
        ("## `MODEL.WEIGHTS`, again", "modelweights-again"),
        ("## **Loud** and [linked](x.md)", "loud-and-linked"),
        ("## snake_case, Größe", "snake_case-größe"),
        ("## For torch: `.pt2` and `.pt`", "for-torch-pt2-and-pt"),
        ("## Closed ##", "closed"),
    ],
)
def test_anchors_are_those_of_github(heading, anchor):
    assert find_anchors(f"text\n{heading}\ntext\n") == [anchor]


def test_a_second_heading_of_a_name_is_numbered_and_comments_in_code_are_none():
    text = "# One\n```sh\n# no heading\n```\n## One\n## Two\n## One\n"
    assert find_anchors(text) == ["one", "one-1", "two", "one-2"]


def test_links_of_all_kinds_are_found():
    text = (
        '[a](a.md) ![b](b.png) [![c](c.png)](d.md) [e](e.md#f "title") <https://g.org>\n'
        '<img src="h.png"> <a href="i.md">i</a>\n[j]: k.md\n`[l](l.md)`\n```\n[m](m.md)\n```\n'
    )
    assert sorted(find_links(text)) == sorted(
        ["a.md", "b.png", "c.png", "d.md", "e.md#f", "https://g.org", "h.png", "i.md", "k.md"]
    )


@pytest.mark.parametrize(
    "target, why",
    [
        ("docs/none.md", "is not there"),
        ("readme.md", "is not there"),
        ("docs/own_data.md#none", "has no such heading"),
        ("#none", "has no such heading"),
        ("../README.md", "leaves the repository"),
        ("/docs/own_data.md", "is absolute"),
        ("setup.py#L1", "has an anchor, and is no page"),
        ("https://", "is no address"),
        ("htps://arxiv.org", "is no address"),
        ("https://arxiv", "is no address"),
        ("docs/own_data.md#predict", None),
        ("#results", None),
        ("configs", None),
        ("https://arxiv.org/abs/2110.00476", None),
    ],
)
def test_a_broken_link_is_found(target, why):
    assert problem("README.md", target) == why
