"""zoo://: where a published file is looked for, how it is checked, and what is said without it."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from iopath.common import file_io

from rsb_d2 import Checkpointer, UserError, model_zoo
from rsb_d2.checkpoint import zoo
from rsb_d2.checkpoint.locating import locate
from tests.helpers.weights.openmmlab import save_as_openmmlab, standin

NAMES = ["frcnn_rsb_1x", "mask_rcnn_rsb_1x", "cascade_mask_rcnn_rsb_1x", "retinanet_rsb_1x"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Detectron2's cache folder, empty; a download that no test has foreseen fails."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(PathManager._path_handlers["https://"], "cache_map", {})

    def download(url, dir, *, filename=None, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(file_io, "download", download)
    return tmp_path / "cache"


@pytest.fixture
def server(cache, monkeypatch):
    """A server; ``server[url] = path`` puts a file there."""
    files = {}

    def download(url, dir, *, filename=None, **kwargs):
        os.makedirs(dir, exist_ok=True)
        return shutil.copy(files[url], os.path.join(dir, filename))

    monkeypatch.setattr(file_io, "download", download)
    return files


def published(path, digest=None):
    """The address of a file as OpenMMLab would publish it."""
    digest = digest or hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return f"{zoo.SERVER}mmdetection/v2.0/some_{digest[:8]}/some-{digest[:8]}.pth"


def test_addresses():
    assert list(zoo.URLS) == NAMES
    digests = [re.fullmatch(r"https://download\.openmmlab\.com/.*-(\w{8})\.pth", url)[1]
               for url in zoo.URLS.values()]  # fmt: skip
    assert digests == ["32ae82a9", "06ce8ba0", "8b9ad50f", "bd24aae9"]
    for name in NAMES:
        assert PathManager.isfile(f"zoo://{name}") and not PathManager.isdir(f"zoo://{name}")
    assert not PathManager.isfile("zoo://frcnn_rsb_9x")


def test_download_is_cached_checked_and_loaded(server, cache, tmp_path, monkeypatch):
    path = save_as_openmmlab(tmp_path / "file.pth", standin("faster_rcnn"))
    url = published(path)
    server[url] = path
    monkeypatch.setitem(zoo.URLS, "frcnn_rsb_1x", url)
    cfg = model_zoo.get_config("frcnn_rsb_1x")
    cfg.MODEL.DEVICE = "cpu"
    checkpointer = Checkpointer(build_model(cfg))
    checkpointer.load("zoo://frcnn_rsb_1x")
    assert checkpointer.report.initial == [] == checkpointer.report.unused
    assert Path(checkpointer.report.path).is_relative_to(cache)
    server.clear()  # from here on it is in the cache
    assert PathManager.get_local_path("zoo://frcnn_rsb_1x") == checkpointer.report.path
    with PathManager.open("zoo://frcnn_rsb_1x", "rb") as f:
        assert f.read() == Path(path).read_bytes()

    model = model_zoo.get("frcnn_rsb_1x.yaml", trained=True, device="cpu")
    ours = dict(checkpointer.model.state_dict())
    assert all(torch.equal(ours[k], t) for k, t in model.state_dict().items())
    assert model.training


def test_what_is_downloaded_damaged_is_deleted(server, cache, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(b"half of it")
    url = published(path, digest="0123456789abcdef")
    server[url] = path
    with pytest.raises(UserError, match="cut off.*not with 01234567.*deleted"):
        zoo.fetch(url)
    assert not list(cache.rglob("*.pth"))


def test_what_is_damaged_in_the_cache_is_left_there(cache, tmp_path, monkeypatch):
    path = tmp_path / "file.pth"
    path.write_bytes(b"something else")
    url = published(path, digest="0123456789abcdef")
    monkeypatch.setitem(zoo.URLS, "frcnn_rsb_1x", url)
    cached = cache / url.removeprefix(zoo.SERVER)
    cached.parent.mkdir(parents=True)
    shutil.copy(path, cached)
    with pytest.raises(UserError, match=f"{cached} is damaged or another file"):
        zoo.fetch("zoo://frcnn_rsb_1x")
    assert cached.is_file()


def test_force_downloads_again(server, cache, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(b"right")
    url = published(path)
    server[url] = path
    cached = Path(zoo.fetch(url))
    cached.write_bytes(b"wrong")
    assert Path(PathManager.get_local_path(zoo.fetch(url, force=True))).read_bytes() == b"right"


def test_without_a_network_it_says_what_to_do(cache):
    with pytest.raises(UserError) as e:
        zoo.fetch("zoo://frcnn_rsb_1x")
    message = str(e.value)
    url = zoo.URLS["frcnn_rsb_1x"]
    for part in (url, "Name or service not known", str(cache / url.removeprefix(zoo.SERVER))):
        assert part in message
    with pytest.raises(UserError, match="failed"):
        model_zoo.get("frcnn_rsb_1x.yaml", trained=True, device="cpu")


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UserError, match="did you mean zoo://frcnn_rsb_1x"):
        zoo.fetch("zoo://frcnn_rsb_3x")
    with pytest.raises(UserError, match="read only"):
        PathManager.open("zoo://frcnn_rsb_1x", "w")


def test_a_cache_that_cannot_be_written(cache, monkeypatch):
    def download(url, dir, **kwargs):
        raise PermissionError(13, "Permission denied", dir)

    monkeypatch.setattr(file_io, "download", download)
    with pytest.raises(UserError, match="FVCORE_CACHE") as error:
        zoo.fetch("zoo://frcnn_rsb_1x")
    assert f"cannot write to the cache {cache}: Permission denied" in str(error.value)


@pytest.mark.parametrize(
    "name, asked", [("a#1 50%.pth", "a%231%2050%25.pth"), ("a%20b.pth", "a%20b.pth")]
)
def test_signs_that_mean_something_in_an_address(server, cache, tmp_path, name, asked):
    (tmp_path / "file").write_bytes(b"weights")
    for start in ("https://example.org/w/", f"{zoo.SERVER}w/"):
        server[start + asked] = tmp_path / "file"
        with open(locate(start + name), "rb") as f:
            assert f.read() == b"weights"
