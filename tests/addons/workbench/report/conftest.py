"""One browser for all pages of the folder."""

import pytest

from tests.helpers.chromium import Chromium


@pytest.fixture(scope="session")
def shared_browser():
    with Chromium() as browser:
        yield browser


@pytest.fixture
def browser(shared_browser):
    """A tab, with an empty console."""
    shared_browser.console()
    return shared_browser
