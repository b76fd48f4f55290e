"""Images beyond this machine: a server that fails, copies on the disk, a user's own handler."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image

from rsb_d2 import add_rsb_config
from rsb_d2.addons.predict.files import find_images
from rsb_d2.addons.storage import disk_cache, remote
from rsb_d2.addons.storage.disk_cache import DiskCache, set_cache
from rsb_d2.addons.storage.remote import read_remote
from rsb_d2.addons.workbench.report.pictures import thumbnail
from rsb_d2.addons.workbench.report.source import open_files
from rsb_d2.data import register_coco_json
from rsb_d2.data.images import BadImageError, read_image
from rsb_d2.data.loader import build_train_loader
from tests.helpers.data.http_server import (
    CUT,
    CUT_UNTOLD,
    DROP,
    STALL,
    FailingServer,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)


def image_bytes(kind="PNG"):
    f = io.BytesIO()
    Image.fromarray(PIXELS).save(f, kind)
    return f.getvalue()


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    monkeypatch.setattr(disk_cache, "_settings", None)  # put back by the fixture
    set_cache(str(tmp_path / "copies"), 1)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)
    return tmp_path / "copies"


@pytest.fixture
def server():
    with FailingServer({"/a.png": image_bytes(), "/with%20space.png": image_bytes()}) as server:
        yield server


def test_image_is_read_once_and_then_from_its_copy(server):
    for _ in range(3):
        assert np.array_equal(read_image(f"{server.address}/a.png", "RGB"), PIXELS)
    assert server.requests == ["/a.png"]
    assert np.array_equal(read_image(f"{server.address}/with space.png", "RGB"), PIXELS)


def test_signs_that_mean_something_in_an_address(server):
    for asked in ("/a%231.png", "/50%25.png", "/%C3%A9%20b.png"):
        server.files[asked] = image_bytes()
    for name in ("a#1.png", "50%.png", "é b.png", "%C3%A9%20b.png"):
        assert np.array_equal(read_image(f"{server.address}/{name}", "RGB"), PIXELS)
    assert server.requests == ["/a%231.png", "/50%25.png", *["/%C3%A9%20b.png"] * 2]


def test_file_names_of_annotations_are_names(server, tmp_path):
    names = ["a#1.png", "50%.png", "a%20b.png", "what?.png", "deep/é.png"]
    asked = ["/a%231.png", "/50%25.png", "/a%2520b.png", "/what%3F.png", "/deep/%C3%A9.png"]
    server.files |= {path: image_bytes() for path in asked}
    content = dict(
        images=[dict(id=i, file_name=n, width=100, height=80) for i, n in enumerate(names)],
        categories=[dict(id=1, name="cat")],
        annotations=[dict(id=1, image_id=0, category_id=1, bbox=[5, 5, 20, 20], area=400)],
    )
    (tmp_path / "a.json").write_text(json.dumps(content))
    source = open_files(str(tmp_path / "a.json"), server.address, with_masks=False)
    for record in DatasetCatalog.get("|".join([str(tmp_path / "a.json"), server.address])):
        assert np.array_equal(read_image(record["file_name"], "RGB"), PIXELS)
    assert server.requests == asked
    assert all(thumbnail(source, image) for image in source.images)
    assert server.requests == asked  # from the copies


@pytest.mark.parametrize("failure", [DROP, CUT, CUT_UNTOLD, STALL, 500, 503, 429])
def test_what_may_pass_is_tried_again(failure, server):
    server.failures["/a.png"] = [failure]
    assert np.array_equal(read_image(f"{server.address}/a.png", "RGB"), PIXELS)
    assert server.requests == ["/a.png"] * 2
    read_image(f"{server.address}/a.png", "RGB")
    assert server.requests == ["/a.png"] * 2  # what was kept is the whole file


def test_failures_in_a_row(server):
    server.failures["/a.png"] = [DROP, CUT, 500, DROP]
    assert np.array_equal(read_image(f"{server.address}/a.png", "RGB"), PIXELS)


@pytest.mark.parametrize(
    "failure, tries, reason",
    [
        (DROP, 5, r"it cannot be fetched, .*\(5 tries\)"),
        (CUT, 5, r"it cannot be fetched, the connection ended after \d+ bytes \(5 tries\)"),
        (500, 5, r"it cannot be fetched, HTTP status 500 \(5 tries\)"),
        (403, 1, "it cannot be fetched, HTTP status 403"),
        (404, 1, "there is no such file"),
    ],
)
def test_what_does_not_pass_is_a_bad_image(failure, tries, reason, server):
    server.failures["/a.png"] = [failure] * 10
    with pytest.raises(BadImageError, match=reason) as error:
        read_image(f"{server.address}/a.png", "RGB")
    assert error.value.path == f"{server.address}/a.png"
    assert len(str(error.value).splitlines()) == 1
    assert len(server.requests) == tries


def test_no_server():
    with pytest.raises(BadImageError, match=r"it cannot be fetched, Connection refused \(5 tries"):
        read_image("http://127.0.0.1:9/a.png", "RGB")


def test_damaged_copy_is_fetched_anew(server, settings):
    url = f"{server.address}/a.png"
    read_image(url, "RGB")
    (copy,) = (p for p in settings.rglob("*") if p.is_file())
    copy.write_bytes(copy.read_bytes()[:100])
    assert np.array_equal(read_image(url, "RGB"), PIXELS)
    assert len(server.requests) == 2
    assert copy.read_bytes() == image_bytes()


def test_image_that_is_damaged_at_its_source(server):
    server.files["/bad.png"] = image_bytes()[:500]
    with pytest.raises(BadImageError, match="it is damaged"):
        read_image(f"{server.address}/bad.png", "RGB")
    assert len(server.requests) == 2


def test_no_copies_where_none_are_wanted(server, settings):
    set_cache(str(settings), 0)
    for _ in range(2):
        read_image(f"{server.address}/a.png", "RGB")
    assert len(server.requests) == 2 and not settings.exists()


def test_folder_that_cannot_be_written_is_said_once(server, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    set_cache(str(tmp_path / "file" / "copies"), 1)
    for _ in range(3):
        assert np.array_equal(read_image(f"{server.address}/a.png", "RGB"), PIXELS)
    assert caplog.text.count("No copies of images are kept") == 1


def folder_size(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_copies_keep_below_the_limit_and_the_oldest_goes_first(tmp_path):
    cache = DiskCache(str(tmp_path / "c"), 10_000)
    for i in range(50):
        cache.put(f"u{i}", bytes([i]) * 1000)
        os.utime(cache._path(f"u{i}"), (i, i))
        if i > 0:
            assert cache.get("u0") is not None  # which makes it the one used last
            os.utime(cache._path("u0"), (i + 0.5, i + 0.5))
        assert folder_size(tmp_path / "c") <= 10_000
    assert cache.get("u0") == bytes(1000) and cache.get("u49") == bytes([49]) * 1000
    assert cache.get("u1") is None and cache.get("u30") is None
    cache.put("large", bytes(9000))
    assert cache.get("large") is None


WRITER = """
import sys
from rsb_d2.addons.storage.disk_cache import DiskCache
cache = DiskCache(sys.argv[1], 200_000)
for i in range(300):
    name = f"{(i * int(sys.argv[2])) % 211}"
    found = cache.get(name)
    assert found in (None, name.encode() * 500), "half of a file"
    cache.put(name, name.encode() * 500)
"""


@pytest.mark.slow
def test_processes_share_the_copies(tmp_path):
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WRITER, str(tmp_path / "c"), str(n)]
        )
        for n in (1, 2, 3)
    ]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert 0 < folder_size(tmp_path / "c") <= 200_000
    assert not list((tmp_path / "c").rglob("*.tmp"))


class Bucket(PathHandler):
    """A user's handler, of which each second read fails."""

    content, reads = image_bytes(), 0

    def _get_supported_prefixes(self):
        return ["flaky://"]

    def _open(self, path, mode="r", **kwargs):
        Bucket.reads += 1
        if Bucket.reads % 2:
            raise RuntimeError("throttled")
        return io.BytesIO(self.content)


def test_handler_of_a_user_has_retries_and_copies():
    PathManager.register_handler(Bucket(), allow_override=True)
    Bucket.reads = 0
    for _ in range(3):
        assert np.array_equal(read_image("flaky://b/a.png", "RGB"), PIXELS)
    assert Bucket.reads == 2


def test_random_numbers_of_the_training_are_not_touched(server):
    import random

    server.failures["/a.png"] = [500, DROP]
    before = random.getstate(), np.random.get_state()[1].tolist()
    read_remote(f"{server.address}/a.png")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_prediction_finds_addresses():
    urls = ["https://example.org/a/b.jpg?size=1", "https://example.org/c/b.jpg"]
    assert find_images(urls) == [(urls[0], "b"), (urls[1], "b_2")]


def test_training_skips_and_counts_what_cannot_be_fetched(server, tmp_path, caplog):
    server.files |= {f"/{i}.png": image_bytes() for i in range(6)}
    server.failures = {"/0.png": [500] * 100, "/1.png": [DROP]}
    content = dict(
        images=[dict(id=i, file_name=f"{i}.png", width=100, height=80) for i in range(6)],
        categories=[dict(id=1, name="cat")],
        annotations=[
            dict(id=i + 1, image_id=i, category_id=1, bbox=[5, 5, 20, 20], iscrowd=0, area=400)
            for i in range(6)
        ],
    )
    (tmp_path / "a.json").write_text(json.dumps(content))
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.DATASETS.COCO_JSON = [["far", str(tmp_path / "a.json"), server.address]]
    cfg.DATASETS.CACHE = str(tmp_path / "cache")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("far",), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.SEED = 1, 1
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    register_coco_json(cfg)
    batches = iter(build_train_loader(cfg))
    files = [image["file_name"] for _ in range(9) for image in next(batches)]
    assert set(files) == {f"{server.address}/{i}.png" for i in range(1, 6)}
    skipped = [r.getMessage() for r in caplog.records if "Skipped a bad image" in r.getMessage()]
    assert len(skipped) == 1 and f"{server.address}/0.png: it cannot be fetched" in skipped[0]
    # 0.png five times each time that it is drawn; 1.png once more; all others once.
    assert all(server.requests.count(f"/{i}.png") == 1 + (i == 1) for i in range(1, 6))
    assert folder_size(tmp_path / "cache" / "images") == 5 * len(image_bytes())
