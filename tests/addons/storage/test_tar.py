"""Images inside tar files."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image
from torch.utils.data import DataLoader

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.addons.predict.files import find_images
from rsb_d2.addons.storage import tar as tar_module
from rsb_d2.addons.storage.tar import open_tar, split_tar_path
from rsb_d2.addons.workbench.report.pictures import thumbnail
from rsb_d2.addons.workbench.report.source import open_files
from rsb_d2.data import register_coco_json
from rsb_d2.data.images import BadImageError, read_image
from tests.helpers.catalogs import catalogs_kept

RNG = np.random.default_rng(0)
PIXELS = {
    name: RNG.integers(0, 256, (80, 100, 3), dtype=np.uint8)
    for name in ("a.png", "deep/er/b.png", "c d ä.png", "x" * 120 + ".png")
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tar_module, "_open_tars", {})
    return tmp_path / "cache" / "rsb_d2" / "tar"


@pytest.fixture(autouse=True)
def catalogs():
    """Leave Detectron2's global catalogs as they were."""
    with catalogs_kept():
        yield


def png(pixels):
    f = io.BytesIO()
    Image.fromarray(pixels).save(f, "PNG")
    return f.getvalue()


def write_tar(path, pixels, prefix="", mode="w", format=tarfile.PAX_FORMAT):
    with tarfile.open(path, mode, format=format) as tar:
        folder = tarfile.TarInfo(f"{prefix}deep")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, values in pixels.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(png(values))
            tar.addfile(member, io.BytesIO(png(values)))
    return str(path)


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_read(prefix, format, tmp_path):
    path = write_tar(tmp_path / "images.tar", PIXELS, prefix, format=format)
    for name, pixels in PIXELS.items():
        assert np.array_equal(read_image(f"{path}!/{name}", "RGB"), pixels)
        assert np.array_equal(read_image(f"{path}!/./{name}", "RGB"), pixels)
    assert sorted(open_tar(path).names()) == sorted(PIXELS)


def test_paths():
    assert split_tar_path("/a/b.tar!/c/d.jpg") == ("/a/b.tar", "c/d.jpg")
    assert split_tar_path("/a/b.tar!") == split_tar_path("/a/b.tar!/") == ("/a/b.tar", "")
    assert split_tar_path("/a/b.tar/c.jpg") is None
    assert split_tar_path("/a/b.tar!c") is None  # a file of that name
    assert split_tar_path("/a/wow!/c.jpg") is None


def test_errors_name_the_image(tmp_path):
    path = write_tar(tmp_path / "images.tar", PIXELS)
    for name in ("nowhere.png", "deep", ""):
        with pytest.raises(BadImageError, match="there is no such file"):
            read_image(f"{path}!/{name}", "RGB")
    with pytest.raises(BadImageError, match="there is no such file"):
        read_image(f"{tmp_path}/nowhere.tar!/a.png", "RGB")
    packed = write_tar(tmp_path / "packed.tar", PIXELS, mode="w:gz")
    with pytest.raises(BadImageError, match="is no uncompressed tar file.*with tar cf"):
        read_image(f"{packed}!/a.png", "RGB")
    (tmp_path / "cut.tar").write_bytes(open(path, "rb").read()[:3000])
    with pytest.raises(BadImageError):
        read_image(f"{tmp_path}/cut.tar!/deep/er/b.png", "RGB")


def test_members_are_found_once_per_machine(tmp_path, cache, monkeypatch):
    path = write_tar(tmp_path / "images.tar", PIXELS)
    read_image(f"{path}!/a.png", "RGB")
    monkeypatch.setattr(tar_module, "_open_tars", {})  # as in another process
    with monkeypatch.context() as m:
        m.setattr(tarfile, "open", lambda *_: pytest.fail("was read again"))
        read_image(f"{path}!/a.png", "RGB")

    (index,) = cache.glob("*.safetensors")
    index.write_bytes(index.read_bytes()[:-9])
    monkeypatch.setattr(tar_module, "_open_tars", {})
    assert np.array_equal(read_image(f"{path}!/a.png", "RGB"), PIXELS["a.png"])

    write_tar(path, {"a.png": PIXELS["deep/er/b.png"]})
    monkeypatch.setattr(tar_module, "_open_tars", {})
    assert np.array_equal(read_image(f"{path}!/a.png", "RGB"), PIXELS["deep/er/b.png"])


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "images.tar", PIXELS)
    monkeypatch.setattr(tar_module, "get_cache_dir", lambda: "/proc/nowhere")
    assert np.array_equal(read_image(f"{path}!/a.png", "RGB"), PIXELS["a.png"])


def make_data_set(tmp_path, names):
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
    cfg.DATASETS.COCO_JSON = [["tarred", str(tmp_path / "a.json"), str(tmp_path / "images.tar!")]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("tarred",), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    return cfg


class Read:
    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        return read_image(self.records[i]["file_name"], "RGB")


def test_data_set_whose_images_are_in_a_tar_file(tmp_path):
    write_tar(tmp_path / "images.tar", PIXELS)
    register_coco_json(make_data_set(tmp_path, list(PIXELS)))
    records = DatasetCatalog.get("tarred")
    assert records[0]["file_name"] == f"{tmp_path}/images.tar!/a.png"
    read_image(records[0]["file_name"], "RGB")  # so that the workers have its descriptor
    loader = DataLoader(Read(records), batch_size=None, num_workers=2)
    for image, pixels in zip(loader, PIXELS.values()):
        assert np.array_equal(image, pixels)


def test_missing_members_are_named_before_training(tmp_path):
    write_tar(tmp_path / "images.tar", PIXELS)
    with pytest.raises(UserError, match=r"1 of 2 image files are not in .*images.tar! \(no.png\)$"):
        register_coco_json(make_data_set(tmp_path, ["a.png", "no.png"]))


def test_tar_file_that_changed_is_looked_at_again(tmp_path, monkeypatch):
    write_tar(tmp_path / "images.tar", PIXELS)
    cfg = make_data_set(tmp_path, ["a.png"])
    register_coco_json(cfg)
    write_tar(tmp_path / "images.tar", {"b.png": PIXELS["a.png"]})
    monkeypatch.setattr(tar_module, "_open_tars", {})
    DatasetCatalog.remove("tarred")
    with pytest.raises(UserError, match="1 of 1 image files are not in"):
        register_coco_json(cfg)


def test_pages_show_images_of_a_tar_file(tmp_path):
    write_tar(tmp_path / "images.tar", PIXELS)
    make_data_set(tmp_path, list(PIXELS))
    source = open_files(str(tmp_path / "a.json"), str(tmp_path / "images.tar!"), with_masks=False)
    assert len(source.images) == len(PIXELS)
    assert all(thumbnail(source, image).startswith("data:image/jpeg") for image in source.images)


def test_prediction_finds_members(tmp_path):
    path = write_tar(tmp_path / "images.tar", PIXELS)
    expected = [(f"{path}!/{name}", os.path.splitext(name)[0]) for name in sorted(PIXELS)]
    assert find_images([path]) == find_images([f"{path}!"]) == expected
    assert find_images([f"{path}!/a.png"]) == [(f"{path}!/a.png", "a")]
