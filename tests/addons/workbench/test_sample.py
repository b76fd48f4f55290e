"""Sample data: the files are correct, repeat for a seed, and never replace other files."""

import json
import os

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import ImageFolder

from rsb_d2 import UserError
from rsb_d2.addons.workbench.sample import (
    CLASS_NAMES,
    make_sample_data,
    make_sample_objects,
)
from rsb_d2.config.loading import load_config
from rsb_d2.data import register_coco_json
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.paths import CONFIGS
from tests.helpers.runs.programs import call_tool, check_line

SMALL = dict(num_train=60, num_val=20, image_size=96)
TINY = dict(num_train=2, num_val=1, image_size=64)
OBJECTS = dict(num_train=30, num_val=9, image_size=64)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "sample"
    make_sample_data(str(folder), **SMALL)
    return folder


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "objects"
    make_sample_objects(str(folder), **OBJECTS)
    return folder


@pytest.fixture(scope="module")
def coco(sample):
    return COCO(str(sample / "annotations" / "train.json"))


def read_bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- pictures ----


def test_files_of_the_pictures(sample):
    assert os.listdir(sample.parent) == ["sample"]
    assert sorted(os.listdir(sample)) == ["annotations", "sample.json", "train", "val"]
    for split in ("train", "val"):
        coco = COCO(str(sample / "annotations" / f"{split}.json"))
        names = [image["file_name"] for image in coco.imgs.values()]
        assert sorted(names) == sorted(os.listdir(sample / split))
        assert len(names) == SMALL[f"num_{split}"]
        assert [c["name"] for c in coco.cats.values()] == list(CLASS_NAMES)
        sizes = set()
        for image in coco.imgs.values():
            with Image.open(sample / split / image["file_name"]) as picture:
                assert picture.format == "JPEG" and picture.mode == "RGB"
                assert picture.size == (image["width"], image["height"])
                sizes.add(picture.size)
        assert sizes == {(96, 96), (96, 72), (72, 96)}


def test_mask_box_and_area_agree_and_masks_do_not_overlap(coco):
    counts = set()
    for image_id in coco.imgs:
        masks = []
        for annotation in coco.imgToAnns[image_id]:
            masks.append(coco.annToMask(annotation))
            x, y, w, h = cv2.boundingRect(masks[-1])
            assert annotation["bbox"] == [x, y, w, h]
            assert annotation["area"] == masks[-1].sum() and annotation["iscrowd"] == 0
        assert np.sum(masks, axis=0).max() <= 1
        counts.add(len(masks))
    assert counts == {1, 2, 3, 4}


def test_bytes_depend_on_the_seed_only(sample, tmp_path):
    make_sample_data(str(tmp_path / "again"), **SMALL)
    one = read_bytes(sample)
    assert one == read_bytes(tmp_path / "again")
    few = dict(num_train=5, num_val=1, image_size=96)
    make_sample_data(str(tmp_path / "few"), **few)
    make_sample_data(str(tmp_path / "other"), **few, seed=1)
    few, other = (read_bytes(tmp_path / name) for name in ("few", "other"))
    pictures = [name for name in few if name.endswith(".jpg")]
    assert len(pictures) == 6
    assert all(few[name] == one[name] != other[name] for name in pictures)
    assert len({data for name, data in one.items() if name.endswith(".jpg")}) == 80


def test_detectron2_reads_it(sample):
    cfg = load_config("", [])
    cfg.DATASETS.COCO_JSON = [
        [f"sample_test_{split}", str(sample / "annotations" / f"{split}.json"), str(sample / split)]
        for split in ("train", "val")
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("sample_test_train",), ("sample_test_val",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(CLASS_NAMES)
    cfg.MODEL.MASK_ON = True
    with catalogs_kept("sample_test_train", "sample_test_val"):
        register_coco_json(cfg)
        # Nothing is dropped or filled in: the file is read as it is.
        assert MetadataCatalog.get("sample_test_train").json_file == cfg.DATASETS.COCO_JSON[0][1]
        mapper = DatasetMapper(cfg, is_train=True)
        for d in list(DatasetCatalog.get("sample_test_train"))[:10]:
            instances = mapper(d)["instances"]
            assert len(instances) == len(d["annotations"])
            boxes_of_masks = instances.gt_masks.get_bounding_boxes().tensor
            scale = instances.image_size[0] / d["height"]
            # Within two pixels: a tip thinner than a pixel is in the polygon, not in the mask.
            assert (boxes_of_masks - instances.gt_boxes.tensor).abs().max() < 2 * scale


# ---- single objects ----


def test_files_of_the_objects(objects, tmp_path):
    assert sorted(os.listdir(objects)) == ["sample.json", "train", "val"]
    for split in ("train", "val"):
        found = ImageFolder(str(objects / split))
        assert found.classes == sorted(CLASS_NAMES) and len(found) == OBJECTS[f"num_{split}"]
        counts = np.bincount(found.targets)
        assert counts.max() - counts.min() <= 1
        assert {image.size for image, _ in found} == {(64, 64)}
    make_sample_objects(str(tmp_path / "a"), **OBJECTS)
    make_sample_objects(str(tmp_path / "b"), **OBJECTS, seed=3)
    one, again, other = map(read_bytes, (objects, tmp_path / "a", tmp_path / "b"))
    assert one == again and not set(one.values()) & set(other.values())
    assert len(set(one.values())) == len(one) == 40  # val and train differ; with the manifest
    manifest = json.loads((objects / "sample.json").read_text())
    assert manifest["seed"] != make_sample_data.__kwdefaults__["seed"]


# ---- the folder ----


@pytest.mark.parametrize(
    "make, size",
    [(make_sample_data, TINY), (make_sample_objects, OBJECTS)],
    ids=["data", "objects"],
)
def test_a_complete_folder_is_reused_and_another_replaced(make, size, tmp_path):
    folder = tmp_path / "deep" / "sample"
    make(str(folder), **size)
    first = read_bytes(folder)
    manifest = json.loads(first["sample.json"])
    # The manifests of earlier versions.
    for package in ("rsb_d2.data", "rsb_d2.addons.workbench"):
        manifest["made_by"] = f"{package}.{manifest['made_by'].split('.')[-1]}"
        (folder / "sample.json").write_text(json.dumps(manifest))
        inode = os.stat(folder).st_ino
        make(str(folder), **size)
        assert os.stat(folder).st_ino == inode
    picture = next(name for name in first if name.startswith("train/"))
    make(str(folder), **size, seed=3)
    assert read_bytes(folder).get(picture) != first[picture]
    make(str(folder), **size)
    os.remove(folder / picture)
    make(str(folder), **size)
    assert read_bytes(folder) == first
    assert os.listdir(folder.parent) == ["sample"]


def test_a_folder_with_other_files_is_not_changed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for make in (make_sample_data, make_sample_objects):
        with pytest.raises(UserError, match=r"holds files that are not sample data \(notes.txt\)"):
            make(str(tmp_path))
        with pytest.raises(UserError, match="notes.txt is a file"):
            make(str(tmp_path / "notes.txt"))
    folder = tmp_path / "sample"
    make_sample_data(str(folder), **TINY)
    (folder / "output").mkdir()
    make_sample_data(str(folder), **TINY)  # the same data: nothing to write
    with pytest.raises(UserError, match=r"\(output\)"):
        make_sample_data(str(folder), **TINY, seed=1)
    assert json.loads((folder / "sample.json").read_text())["seed"] == 0
    with pytest.raises(UserError, match="cannot write .*notes.txt/sample"):
        make_sample_data(str(tmp_path / "notes.txt" / "sample"), **TINY)


# ---- the program, and configs without the data ----


def test_the_program(tmp_path, monkeypatch):
    words = ["--num-train", "2", "--num-val", "1", "--image-size", "64", "--seed", "5"]
    status, out, err = call_tool("sample_data", tmp_path, "pictures", "--folder", "a", *words)
    assert (status, out, err) == (0, "pictures: a\n", "")
    make_sample_data(str(tmp_path / "same"), **TINY, seed=5)
    assert read_bytes(tmp_path / "a") == read_bytes(tmp_path / "same")
    for kind, *options, message in [
        ("pictures", "--num-train", "0", "num_train is 0; it must be an integer of 1 or more"),
        ("pictures", "--image-size", "32", "image_size is 32; .* an integer from 64 to 1024"),
        ("objects", "--num-val", "3", "num_val is 3; it must be an integer of 4 or more"),
    ]:
        status, _, err = call_tool("sample_data", tmp_path, kind, *options)
        assert status == 2
        check_line(err, message)
    assert sorted(os.listdir(tmp_path)) == ["a", "same"]


@pytest.mark.parametrize("name", ["frcnn_rsb_sample", "pretrain/resnet50_rsb_sample"])
def test_configs_name_the_program_if_the_data_is_missing(name, tmp_path, monkeypatch, train_net):
    monkeypatch.chdir(tmp_path)
    for removed in ("", "DATASETS: {SAMPLE_DATA: a, SAMPLE_OBJECTS: b}\n"):
        (tmp_path / "my.yaml").write_text(f"_BASE_: {CONFIGS / name}.yaml\n{removed}")
        line = train_net("--config-file", "my.yaml", "MODEL.DEVICE", "cpu")
        check_line(line, "train_net.py: error: ")
        assert "datasets/rsb_sample" in line and "`rsb-d2 sample-data` makes it" in line
