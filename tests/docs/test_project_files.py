"""License, citation, changelog and version, which say the same in several places."""

import hashlib
import re

import pytest
import yaml

import rsb_d2
from tests.helpers.pages import find_links, read
from tests.helpers.paths import ROOT

# https://www.apache.org/licenses/LICENSE-2.0.txt without its white space and its appendix, which
# every project copies with blanks of its own.
APACHE_2 = "7b2ba0abe66a3c17795274a203ccf5e5e439dbfdeaba4be0a97869bb0f665bfc"


def test_the_license_is_apache_2():
    terms, end, _ = (ROOT / "LICENSE").read_text().partition("END OF TERMS AND CONDITIONS")
    assert end and hashlib.sha256("".join(terms.split()).encode()).hexdigest() == APACHE_2


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load(read("CITATION.cff"))


def test_citation(citation):
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))  # which the format demands
    for work in (citation["preferred-citation"], *citation["references"]):
        assert work["type"] in ("article", "software") and work["title"] and work["url"]
        assert all("name" in author or "family-names" in author for author in work["authors"])
    titles = [work["title"] for work in citation["references"]]
    assert [
        any(name in title for title in titles) for name in ("Detectron2", "Image Models", "MMD")
    ]


def test_the_readme_cites_the_same_paper(citation):
    paper = citation["preferred-citation"]
    text = read("README.md")
    assert paper["url"] in find_links(text) and str(paper["year"]) in text
    entry = re.search(r"^```bibtex\n(.*?)^```", text, re.M | re.S)[1].replace("{\\'e}", "é")
    assert paper["title"].lower() in re.sub("[{}]", "", entry).lower()
    assert re.findall(r"(\w+), \w+", re.search("author += (.*)", entry)[1]) == [
        author["family-names"] for author in paper["authors"]
    ]


def test_versions_and_dates(citation):
    releases = re.findall(r"^## \[(\S+)\] - (\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), re.M)
    newest = (rsb_d2.__version__, str(citation["date-released"]))
    assert releases[0] == newest and str(citation["version"]) == rsb_d2.__version__
    numbers = [tuple(map(int, version.split("."))) for version, _ in releases]
    assert numbers == sorted(numbers, reverse=True) and len(set(numbers)) == len(numbers)


def test_changes_are_of_the_usual_kinds():
    kinds = set(re.findall(r"^### (.*)$", read("CHANGELOG.md"), re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
