"""A data set, a folder for its cache, and Detectron2's catalogs as they were."""

import logging

import pytest

from tests.helpers.catalogs import catalogs_kept
from tests.helpers.data.coco_content import make_content, write_data_set


@pytest.fixture(autouse=True)
def catalogs(tmp_path, monkeypatch, caplog):
    """Leave Detectron2's global catalogs as they were."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    caplog.set_level(logging.DEBUG, "rsb_d2")
    with catalogs_kept():
        yield


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path):
    return write_data_set(tmp_path, make_content())
