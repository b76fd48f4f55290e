"""The sample data: what is on disk, that it is right, and that it is never written over blindly."""

import json
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.addons.workbench.sample import CLASS_NAMES, make_sample_data
from rsb_d2.addons.workbench.sample.__main__ import main
from rsb_d2.addons.workbench.sample.draw import draw_picture
from rsb_d2.addons.workbench.sample.folder import to_annotation
from rsb_d2.data import register_coco_json

SMALL = dict(num_train=60, num_val=20, image_size=96)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "sample"
    make_sample_data(str(folder), **SMALL)
    return folder


@pytest.fixture(scope="module")
def coco(sample):
    return COCO(str(sample / "annotations" / "train.json"))


def read_bytes(folder):
    return {
        os.path.relpath(os.path.join(parent, name), folder): open(
            os.path.join(parent, name), "rb"
        ).read()
        for parent, _, names in os.walk(folder)
        for name in names
    }


def test_layout(sample):
    assert sorted(os.listdir(sample)) == ["annotations", "sample.json", "train", "val"]
    assert sorted(os.listdir(sample / "annotations")) == ["train.json", "val.json"]
    assert sorted(os.listdir(sample.parent)) == ["sample"]
    for split in ("train", "val"):
        coco = COCO(str(sample / "annotations" / f"{split}.json"))
        names = [image["file_name"] for image in coco.imgs.values()]
        assert sorted(names) == sorted(os.listdir(sample / split))
        assert len(names) == SMALL[f"num_{split}"]
        assert [c["name"] for c in coco.cats.values()] == list(CLASS_NAMES)


def test_images_are_as_the_annotations_say(sample, coco):
    sizes = set()
    for image in coco.imgs.values():
        with Image.open(sample / "train" / image["file_name"]) as picture:
            assert picture.format == "JPEG" and picture.mode == "RGB"
            assert picture.size == (image["width"], image["height"])
            sizes.add(picture.size)
    assert sizes == {(96, 96), (96, 72), (72, 96)}


def test_mask_box_and_area_agree(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        x, y, w, h = annotation["bbox"]
        assert (columns.min(), columns.max() + 1) == (x, x + w)
        assert (rows.min(), rows.max() + 1) == (y, y + h)
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0


def test_masks_of_an_image_do_not_overlap(coco):
    num_objects = []
    for image_id in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.imgToAnns[image_id]]
        assert np.sum(masks, axis=0).max() <= 1
        num_objects.append(len(masks))
    assert min(num_objects) >= 1 and max(num_objects) <= 4
    assert len(set(num_objects)) == 4


def test_masks_are_exactly_what_is_visible():
    num_hidden = 0
    for seed in range(40):
        picture, shapes = draw_picture(np.random.default_rng(seed), 128)
        height, width = picture.shape[:2]
        hidden = np.zeros((height, width), dtype=bool)
        for shape in reversed(shapes):  # from front to back
            full = mask_util.frPyObjects([shape.polygon.ravel().tolist()], height, width)
            assert np.array_equal(shape.mask, mask_util.decode(full)[..., 0] == 1)
            assert np.array_equal(shape.visible, shape.mask & ~hidden)
            assert shape.visible.sum() >= 0.6 * shape.mask.sum()
            polygons = to_annotation(shape, 1)["segmentation"]
            rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
            assert np.array_equal(shape.visible, mask_util.decode(rle) == 1)
            num_hidden += (shape.mask & hidden).any()
            hidden |= shape.mask
    assert num_hidden >= 20


def test_objects_stand_out_where_the_masks_are():
    for seed in range(20):
        picture, shapes = draw_picture(np.random.default_rng(seed), 128)
        covered = np.any([s.mask for s in shapes], axis=0)
        for shape in shapes:
            inside = picture[shape.visible].astype(float)
            outside = picture[~covered].astype(float)
            assert np.abs(np.median(inside, axis=0) - np.median(outside, axis=0)).max() > 25


def test_classes_are_balanced_and_sizes_varied(coco):
    counts = np.bincount([a["category_id"] for a in coco.anns.values()], minlength=5)[1:]
    assert counts.min() > 0.5 * counts.mean() and counts.max() < 1.6 * counts.mean()
    sides = np.array([max(a["bbox"][2:]) for a in coco.anns.values()])
    assert sides.min() < 20 and sides.max() > 40


def test_same_seed_same_bytes(sample, tmp_path):
    make_sample_data(str(tmp_path / "again"), **SMALL)
    assert read_bytes(sample) == read_bytes(tmp_path / "again")


def test_other_seed_and_other_split_are_other_pictures(sample, tmp_path):
    make_sample_data(str(tmp_path / "other"), **SMALL, seed=1)
    one, other = read_bytes(sample), read_bytes(tmp_path / "other")
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)
    assert len({data for name, data in one.items() if name.endswith(".jpg")}) == 80


def test_more_images_leave_the_first_as_they_were(sample, tmp_path):
    make_sample_data(str(tmp_path / "few"), num_train=5, num_val=1, image_size=96)
    few, many = read_bytes(tmp_path / "few"), read_bytes(sample)
    pictures = [name for name in few if name.endswith(".jpg")]
    assert len(pictures) == 6
    assert all(few[name] == many[name] for name in pictures)


def test_detectron2_trains_on_it(sample):
    cfg = get_cfg()
    add_rsb_config(cfg)
    entries = [
        [f"sample_test_{split}", str(sample / "annotations" / f"{split}.json"), str(sample / split)]
        for split in ("train", "val")
    ]
    cfg.DATASETS.COCO_JSON = entries
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("sample_test_train",), ("sample_test_val",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(CLASS_NAMES)
    cfg.MODEL.MASK_ON = True
    try:
        register_coco_json(cfg)
        # Nothing to drop, nothing to fill in: the file is read as it is.
        assert MetadataCatalog.get("sample_test_train").json_file == entries[0][1]
        dicts = DatasetCatalog.get("sample_test_train")
        mapper = DatasetMapper(cfg, is_train=True)
        for d in dicts[:10]:
            instances = mapper(d)["instances"]
            assert len(instances) == len(d["annotations"])
            boxes_of_masks = instances.gt_masks.get_bounding_boxes().tensor
            scale = instances.image_size[0] / d["height"]
            # Within two pixels: a tip thinner than a pixel is in the polygon, not in the mask.
            assert (boxes_of_masks - instances.gt_boxes.tensor).abs().max() < 2 * scale
    finally:
        for name, _, _ in entries:
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)


# ---- the folder ----

TINY = dict(num_train=2, num_val=1, image_size=64)


def test_complete_folder_is_left_alone(tmp_path):
    folder = tmp_path / "deep" / "sample"
    make_sample_data(str(folder), **TINY)
    inode = os.stat(folder).st_ino
    make_sample_data(str(folder), **TINY)
    assert os.stat(folder).st_ino == inode


def test_other_arguments_or_lost_files_make_it_anew(tmp_path):
    folder = tmp_path / "sample"
    make_sample_data(str(folder), **TINY)
    first = read_bytes(folder)
    make_sample_data(str(folder), **TINY, seed=3)
    assert read_bytes(folder)["train/000001.jpg"] != first["train/000001.jpg"]
    make_sample_data(str(folder), **TINY)
    os.remove(folder / "train" / "000001.jpg")
    make_sample_data(str(folder), **TINY)
    assert read_bytes(folder) == first
    assert os.listdir(tmp_path) == ["sample"]


def test_folder_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds what is not sample data \(notes.txt\)"):
        make_sample_data(str(tmp_path), **TINY)
    with pytest.raises(UserError, match="notes.txt is a file"):
        make_sample_data(str(tmp_path / "notes.txt"), **TINY)

    folder = tmp_path / "sample"
    make_sample_data(str(folder), **TINY)
    (folder / "output").mkdir()
    make_sample_data(str(folder), **TINY)  # the same data: nothing to write
    with pytest.raises(UserError, match=r"\(output\)"):
        make_sample_data(str(folder), **TINY, seed=1)
    assert json.loads((folder / "sample.json").read_text())["seed"] == 0


def test_empty_folder_and_link_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    make_sample_data(str(tmp_path / "link"), **TINY)
    assert len(os.listdir(tmp_path / "empty" / "train")) == 2
    assert (tmp_path / "link").is_symlink()


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "sample"
    make_sample_data(str(folder), **TINY)
    before = read_bytes(folder)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("rsb_d2.addons.workbench.sample.folder.write_json", fail)
    for name in ("sample", "new"):
        with pytest.raises(KeyboardInterrupt):
            make_sample_data(str(tmp_path / name), **TINY, seed=1)
    assert os.listdir(tmp_path) == ["sample"]
    assert read_bytes(folder) == before


@pytest.mark.parametrize(
    "argument, value, message",
    [
        ("num_train", 0, "num_train is 0; it must be an integer of 1 or more"),
        ("num_val", 2.0, "num_val is 2.0; it must be an integer of 1 or more"),
        ("image_size", 32, "image_size is 32; it must be an integer from 64 to 1024"),
        ("seed", -1, "seed is -1; it must be an integer of 0 or more"),
    ],
)
def test_wrong_arguments(argument, value, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make_sample_data(str(tmp_path / "sample"), **{**TINY, argument: value})
    assert os.listdir(tmp_path) == []


def test_command_line(tmp_path, capsys):
    folder = str(tmp_path / "sample")
    options = ["--num-train", "2", "--num-val", "1", "--image-size", "64", "--seed", "5"]
    main([folder, *options])
    assert folder in capsys.readouterr().out
    make_sample_data(str(tmp_path / "same"), **TINY, seed=5)
    assert read_bytes(folder) == read_bytes(tmp_path / "same")
    with pytest.raises(SystemExit, match="error: seed is -1"):
        main([folder, "--seed", "-1"])


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/sample: File exists"):
        make_sample_data(str(tmp_path / "file" / "sample"), num_train=1, num_val=1)
