"""Images in tar files, behind a server that fails, and in a user's own storage."""

import contextlib
import io
import json
import os
import random
import socket
import struct
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image
from torch.utils.data import DataLoader

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.addons.predict.files import find_images
from rsb_d2.addons.storage import remote, tar
from rsb_d2.data import register_coco_json
from rsb_d2.data.images import BadImageError, read_image
from rsb_d2.data.loader import build_train_loader
from tests.helpers.catalogs import catalogs_kept

RNG = np.random.default_rng(0)
PIXELS = {
    name: RNG.integers(0, 256, (80, 100, 3), dtype=np.uint8)
    for name in ("a.png", "deep/er/b.png", "c d ä.png", "x" * 120 + ".png")
}


DROP, CUT, CUT_UNTOLD, STALL = "drop", "cut", "cut without a length", "stall"


class FailingServer(ThreadingHTTPServer):
    """Serves files from memory, and fails on demand.

    Attributes:
        files (dict[str, bytes]): content by path, as in ``"/a.jpg"``.
        failures (dict[str, list]): how the next requests of a path fail: a status, or a constant
            from above.
        requests (list[str]): the paths of all requests.
    """

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.files, self.failures, self.requests = files, {}, []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append(self.path)
        self.close_connection = True
        failures = self.server.failures.get(self.path)
        failure, content = failures.pop(0) if failures else None, self.server.files.get(self.path)
        if failure == DROP:  # with a reset
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        elif failure == STALL:
            time.sleep(5)
        elif isinstance(failure, int) or content is None:
            self.send_response(failure or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_response(200)
            if failure != CUT_UNTOLD:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            is_cut = failure in (CUT, CUT_UNTOLD)
            with contextlib.suppress(OSError):
                self.wfile.write(content[: len(content) // 2] if is_cut else content)


def png(name="a.png"):
    f = io.BytesIO()
    Image.fromarray(PIXELS[name]).save(f, "PNG")
    return f.getvalue()


def assert_is(path, name="a.png"):
    np.testing.assert_array_equal(read_image(path, "RGB"), PIXELS[name])


@pytest.fixture(autouse=True)
def copies(tmp_path, monkeypatch):
    """Empty caches, short waits, and Detectron2's catalogs restored afterwards."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    monkeypatch.setattr(tar, "_open_tars", {})
    monkeypatch.setattr(remote, "_settings", (str(tmp_path / "copies"), 1.0))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)
    with catalogs_kept():
        yield tmp_path / "copies"


@pytest.fixture
def server():
    with FailingServer({"/a.png": png()}) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def data_set(tmp_path, names, root, *opts):
    """A config of a data set with one box in each image."""
    content = dict(
        images=[dict(id=i, file_name=n, width=100, height=80) for i, n in enumerate(names)],
        categories=[dict(id=1, name="cat")],
        annotations=[
            dict(id=i + 1, image_id=i, category_id=1, bbox=[5, 5, 20, 20], iscrowd=0, area=400)
            for i in range(len(names))
        ],
    )
    (tmp_path / "a.json").write_text(json.dumps(content))
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.merge_from_list(list(opts))
    cfg.DATASETS.COCO_JSON = [["elsewhere", str(tmp_path / "a.json"), root]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("elsewhere",), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    return cfg


# ---- tar files ----


def write_tar(path, names=PIXELS, prefix="", mode="w", format=tarfile.PAX_FORMAT):
    with tarfile.open(path, mode, format=format) as f:
        folder = tarfile.TarInfo(f"{prefix}deep")
        folder.type = tarfile.DIRTYPE
        f.addfile(folder)
        for name in names:
            member = tarfile.TarInfo(prefix + name)
            member.size = len(png(name))
            f.addfile(member, io.BytesIO(png(name)))
    return str(path)


@pytest.mark.parametrize(
    "prefix, format", [("", tarfile.PAX_FORMAT), ("./", tarfile.GNU_FORMAT)], ids=["pax", "gnu"]
)
def test_members_are_read(prefix, format, tmp_path):
    path = write_tar(tmp_path / "images.tar", prefix=prefix, format=format)
    for name in PIXELS:
        assert_is(f"{path}!/{name}", name)
        assert_is(f"{path}!/./{name}", name)
    assert sorted(tar.open_tar(path).names()) == sorted(PIXELS)
    expected = [(f"{path}!/{name}", os.path.splitext(name)[0]) for name in sorted(PIXELS)]
    assert find_images([path]) == find_images([f"{path}!"]) == expected
    assert find_images([f"{path}!/a.png"]) == [(f"{path}!/a.png", "a")]


def test_errors_of_tar_files_name_the_image(tmp_path):
    path = write_tar(tmp_path / "images.tar")
    packed = write_tar(tmp_path / "packed.tar", mode="w:gz")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "images.tar").read_bytes()[:3000])
    for image, message in (
        (f"{path}!/nowhere.png", "there is no such file"),
        (f"{path}!/deep", "there is no such file"),
        (f"{path}!/", "there is no such file"),
        (f"{tmp_path}/nowhere.tar!/a.png", "there is no such file"),
        (f"{packed}!/a.png", "is not an uncompressed tar file.*with tar cf"),
        (f"{tmp_path}/cut.tar!/deep/er/b.png", "cut.tar!/deep/er/b.png: .*"),
    ):
        with pytest.raises(BadImageError, match=message):
            read_image(image, "RGB")


def test_the_index_of_a_tar_file_is_stored(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "images.tar")
    assert_is(f"{path}!/a.png")

    def in_another_process(name="a.png"):
        monkeypatch.setattr(tar, "_open_tars", {})
        assert_is(f"{path}!/a.png", name)

    with monkeypatch.context() as m:
        m.setattr(tarfile, "open", lambda *_: pytest.fail("the tar file was read again"))
        in_another_process()
    (index,) = (tmp_path / "fvcore" / "rsb_d2" / "tar").glob("*.npy")
    index.write_bytes(index.read_bytes()[:-9])
    in_another_process()
    (tmp_path / "images.tar").unlink()
    with monkeypatch.context() as m:
        m.setitem(PIXELS, "a.png", PIXELS["deep/er/b.png"])
        write_tar(tmp_path / "images.tar", ["a.png"])
    in_another_process("deep/er/b.png")
    monkeypatch.setattr(tar, "get_cache_dir", lambda: "/proc/nowhere")  # not writable
    in_another_process("deep/er/b.png")


class Read:
    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        return read_image(self.records[i]["file_name"], "RGB")


def test_a_data_set_in_a_tar_file(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "images.tar")
    register_coco_json(data_set(tmp_path, list(PIXELS), f"{path}!"))
    records = DatasetCatalog.get("elsewhere")
    assert records[0]["file_name"] == f"{path}!/a.png"
    read_image(records[0]["file_name"], "RGB")  # so that forked workers share its descriptor
    loader = DataLoader(Read(records), batch_size=None, num_workers=2)
    for image, pixels in zip(loader, PIXELS.values()):
        assert np.array_equal(image, pixels)
    # Missing members are reported before training, also after the tar file has changed.
    write_tar(path, ["a.png"])
    monkeypatch.setattr(tar, "_open_tars", {})
    DatasetCatalog.remove("elsewhere")
    with pytest.raises(UserError, match=r"1 of 2 image files are not in .*images.tar! \(no.png\)$"):
        register_coco_json(data_set(tmp_path, ["a.png", "no.png"], f"{path}!"))


# ---- servers ----


def test_names_and_addresses(server, tmp_path):
    """A user's address is read as in a browser; a name in an annotation file is only a name."""
    urls = {"a#1.png": "/a%231.png", "50%.png": "/50%25.png", "%C3%A9%20b.png": "/%C3%A9%20b.png"}
    names = {"a%20b.png": "/a%2520b.png", "what?.png": "/what%3F.png", "é b.png": "/%C3%A9%20b.png"}
    server.files |= {path: png() for path in (urls | names).values()}
    for url, requested in urls.items():
        assert_is(f"{server.address}/{url}")
        assert server.requests[-1] == requested
    register_coco_json(data_set(tmp_path, list(names), server.address))
    server.requests.clear()
    for record in DatasetCatalog.get("elsewhere"):
        assert_is(record["file_name"])
        assert_is(record["file_name"])  # from the copy
    assert server.requests == list(names.values())
    urls = ["https://example.org/a/b.jpg?size=1", "https://example.org/c/b.jpg"]
    assert find_images(urls) == [(urls[0], "b"), (urls[1], "b_2")]


@pytest.mark.parametrize(
    "failures",
    [[DROP], [CUT], [CUT_UNTOLD], [STALL], [500], [503], [429], [DROP, CUT, 500, DROP]],
    ids=str,
)
def test_temporary_failures_are_retried(failures, server):
    server.failures["/a.png"] = list(failures)
    before = random.getstate(), np.random.get_state()[1].tolist()
    for _ in range(2):  # the copy is complete
        assert_is(f"{server.address}/a.png")
        assert server.requests == ["/a.png"] * (len(failures) + 1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


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
def test_lasting_failures_are_a_bad_image(failure, tries, reason, server):
    server.failures["/a.png"] = [failure] * 10
    with pytest.raises(BadImageError, match=reason) as error:
        read_image(f"{server.address}/a.png", "RGB")
    assert error.value.path == f"{server.address}/a.png"
    assert len(str(error.value).splitlines()) == 1
    assert len(server.requests) == tries


def test_damaged_copies_and_sources(server, copies):
    url = f"{server.address}/a.png"
    read_image(url, "RGB")
    (copy,) = (p for p in copies.rglob("*") if p.is_file())
    copy.write_bytes(copy.read_bytes()[:100])
    assert_is(url)
    assert len(server.requests) == 2 and copy.read_bytes() == png()
    server.files["/bad.png"] = png()[:500]
    with pytest.raises(BadImageError, match="it is damaged"):
        read_image(f"{server.address}/bad.png", "RGB")
    assert server.requests[2:] == ["/bad.png"] * 2


def test_without_a_cache(server, copies, tmp_path, caplog):
    remote.set_cache(str(copies), 0)
    for _ in range(2):
        assert_is(f"{server.address}/a.png")
    assert len(server.requests) == 2 and not copies.exists()
    (tmp_path / "file").write_text("")
    remote.set_cache(str(tmp_path / "file" / "copies"), 1)  # not writable
    for _ in range(3):
        assert_is(f"{server.address}/a.png")
    assert caplog.text.count("No copies of images are kept") == 1


def folder_size(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_the_cache_stays_within_its_limit_and_the_oldest_is_removed_first(tmp_path):
    cache = remote.DiskCache(str(tmp_path / "c"), 10_000)
    for i in range(50):
        cache.put(f"u{i}", bytes([i]) * 1000)
        os.utime(cache._path(f"u{i}"), (i, i))
        if i > 0:
            assert cache.get("u0") is not None  # now the most recently used
            os.utime(cache._path("u0"), (i + 0.5, i + 0.5))
        assert folder_size(tmp_path / "c") <= 10_000
    assert cache.get("u0") == bytes(1000) and cache.get("u49") == bytes([49]) * 1000
    assert cache.get("u1") is None and cache.get("u30") is None
    cache.put("large", bytes(9000))
    assert cache.get("large") is None


class Bucket(PathHandler):
    """A user's handler; every second read fails."""

    reads = 0

    def _get_supported_prefixes(self):
        return ["flaky://"]

    def _open(self, path, mode="r", **kwargs):
        Bucket.reads += 1
        if Bucket.reads % 2:
            raise RuntimeError("throttled")
        return io.BytesIO(png())


def test_a_handler_of_a_user_has_retries_and_copies():
    PathManager.register_handler(Bucket(), allow_override=True)
    for _ in range(3):
        assert_is("flaky://b/a.png")
    assert Bucket.reads == 2


def test_training_skips_and_counts_images_that_cannot_be_read(server, tmp_path, caplog):
    names = [f"{i}.png" for i in range(6)]
    server.files |= {f"/{name}": png() for name in names}
    server.failures = {"/0.png": [500] * 100, "/1.png": [DROP]}
    keys = ("SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0, "SEED", 1)
    cfg = data_set(tmp_path, names, server.address, "DATASETS.CACHE", str(tmp_path / "c"), *keys)
    register_coco_json(cfg)
    batches = iter(build_train_loader(cfg))
    files = [image["file_name"] for _ in range(9) for image in next(batches)]
    assert set(files) == {f"{server.address}/{name}" for name in names[1:]}
    skipped = [r.getMessage() for r in caplog.records if "Skipped a bad image" in r.getMessage()]
    assert len(skipped) == 1 and f"{server.address}/0.png: it cannot be fetched" in skipped[0]
    # One request for each readable image, and one more for 1.png.
    assert all(server.requests.count(f"/{i}.png") == 1 + (i == 1) for i in range(1, 6))
    assert folder_size(tmp_path / "c" / "images") == 5 * len(png())
