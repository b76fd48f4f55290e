"""Annotation files for the tests of data: written, and forgotten again."""

import json

import pytest
from PIL import Image

from tests.helpers.catalogs import catalogs_kept
from tests.helpers.data.coco_files import HEIGHT, WIDTH


@pytest.fixture
def catalogs():
    """Leave Detectron2's global catalogs as they were."""
    with catalogs_kept():
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that corrected copies of annotation files go to."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rsb_d2" / "coco_json"


@pytest.fixture
def images(tmp_path):
    """The image folder of ``coco_content()``."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in (10, 20, 30):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture
def write_coco(tmp_path, images, catalogs, cache):
    """A function that writes a COCO-format file; returns its entry for DATASETS.COCO_JSON."""

    def write(content, name="mine"):
        path = tmp_path / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return [name, str(path), str(images)]

    return write
