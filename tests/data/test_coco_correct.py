"""What is dropped or filled in of an annotation file, and what is logged."""

import json
import logging
import os

import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

from rsb_d2 import UserError
from rsb_d2.data import register_coco_json
from tests.helpers.data.coco_files import (
    HEIGHT,
    WIDTH,
    annotations_of,
    coco_content,
    edit,
    evaluate_perfect_predictions,
    make_cfg,
    register,
)

# ---- what is dropped, and what is filled in ----


DROPS = {
    "unknown image": (edit(0, image_id=99), "1 of images that are not in 'images' (ids: 1)"),
    "zero width": (edit(0, bbox=[5, 5, 0, 9]), "1 with a box of no area (ids: 1)"),
    "zero height": (edit(0, bbox=[5, 5, 9, 0.0]), "1 with a box of no area (ids: 1)"),
    "inverted": (edit(0, bbox=[50, 50, -20, 10]), "1 with a box of no area (ids: 1)"),
    "nan": (edit(0, bbox=[float("nan"), 5, 9, 9]), "1 with a box that is not finite (ids: 1)"),
    "infinite": (edit(0, bbox=[5, 5, 9, float("inf")]), "1 with a box that is not finite (ids: 1)"),
    "right of": (edit(0, bbox=[WIDTH, 5, 9, 9]), "1 with a box outside the image (ids: 1)"),
    "below": (edit(0, bbox=[5, HEIGHT, 9, 9]), "1 with a box outside the image (ids: 1)"),
    "left of": (edit(0, bbox=[-9, 5, 9, 9]), "1 with a box outside the image (ids: 1)"),
    "above": (edit(0, bbox=[5, -20, 9, 9]), "1 with a box outside the image (ids: 1)"),
}


@pytest.mark.parametrize("case", DROPS)
def test_unusable_annotation_is_dropped_from_training_and_evaluation(
    case, write_coco, caplog, cache
):
    mistake, message = DROPS[case]
    content = coco_content()
    mistake(content)
    entry = write_coco(content)
    before = open(entry[1], "rb").read()
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        dicts = register(entry, test=["mine"])

    assert len(annotations_of(dicts)) == 3
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("rsb_d2")]
    assert warnings == [f"{entry[1]}: dropped 1 of 4 annotations: {message}"]
    copy_read = MetadataCatalog.get("mine").json_file
    assert os.path.dirname(copy_read) == str(cache)
    assert sorted(COCO(copy_read).anns) == [2, 3, 4]
    assert evaluate_perfect_predictions("mine")["AP"] == pytest.approx(100)
    assert open(entry[1], "rb").read() == before


def test_a_box_partly_outside_is_kept_and_reported(write_coco, caplog):
    content = coco_content()
    content["annotations"][0]["bbox"] = [80, 10, 30, 20]
    content["annotations"][2]["bbox"] = [0, 0, 100.9, 80]  # less than a pixel: rounding
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        dicts = register(write_coco(content))
    assert annotations_of(dicts)[0]["bbox"] == [80, 10, 30, 20]
    assert MetadataCatalog.get("mine").json_file.endswith("mine.json")
    assert "1 of 4 boxes reach beyond their image (ids: 1)" in caplog.text
    assert "[x, y, width, height]" not in caplog.text


def test_corners_written_as_width_and_height_are_suspected(write_coco, caplog):
    content = coco_content()
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x + 45, y + 40, x + 45 + w, y + 40 + h]
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        register(write_coco(content))
    assert "is 'bbox' [x, y, width, height]?" in caplog.text


def test_fields_that_pycocotools_needs_are_filled_in(write_coco):
    content = coco_content()
    half = [10, 10, 40, 10, 10, 30]  # half of the box
    content["annotations"][0].update(segmentation=[half])
    content["annotations"][1].pop("segmentation")
    for a in content["annotations"]:
        del a["area"], a["iscrowd"]
    dicts = register(write_coco(content), test=["mine"])

    coco = COCO(MetadataCatalog.get("mine").json_file)
    assert [coco.anns[i]["area"] for i in (1, 2, 3, 4)] == [300, 1600, 8000, 144]
    assert all(a["iscrowd"] == 0 for a in coco.anns.values())
    assert len(annotations_of(dicts)) == 4
    assert evaluate_perfect_predictions("mine")["AP"] == pytest.approx(100)


def test_area_of_rle(write_coco):
    content = coco_content()
    counts = [100, 30, HEIGHT * WIDTH - 130]
    rle = mask_util.frPyObjects(dict(size=[HEIGHT, WIDTH], counts=counts), HEIGHT, WIDTH)
    compressed = dict(size=[HEIGHT, WIDTH], counts=rle["counts"].decode())
    content["annotations"][0].update(
        segmentation=dict(size=[HEIGHT, WIDTH], counts=counts), area=None
    )
    content["annotations"][1].update(segmentation=compressed, area=float("nan"))
    register(write_coco(content))
    coco = COCO(MetadataCatalog.get("mine").json_file)
    assert [coco.anns[i]["area"] for i in (1, 2)] == [30, 30]


def test_annotation_ids_from_zero_count_in_evaluation(write_coco):
    content = coco_content()
    for i, a in enumerate(content["annotations"]):
        a["id"] = i - 1
    entry = write_coco(content)
    register(entry, test=["mine"])
    assert sorted(COCO(MetadataCatalog.get("mine").json_file).anns) == [1, 2, 3, 4]
    assert evaluate_perfect_predictions("mine")["AP"] == pytest.approx(100)


def test_ignored_objects_become_crowds(write_coco):
    content = coco_content()
    content["annotations"][0]["ignore"] = 1
    content["annotations"][1]["ignore"] = 0
    dicts = register(write_coco(content), test=["mine"])
    assert [a["iscrowd"] for a in annotations_of(dicts)] == [1, 0, 0, 0]
    assert evaluate_perfect_predictions("mine")["AP"] == pytest.approx(100)


# ---- masks ----


BAD_MASKS = {
    "two points": [[1, 2, 3, 4]],
    "odd number of coordinates": [[1, 2, 3, 4, 5, 6, 7]],
    "text": "polygon",
    "coordinates that are text": [["1", "2", "3", "4", "5", "6"]],
    "not nested": [10, 10, 40, 10, 10, 30],
    "not finite": [[1, 2, float("nan"), 4, 5, 6]],
    "RLE of another size": dict(size=[WIDTH, HEIGHT], counts=[10, 5, HEIGHT * WIDTH - 15]),
    "RLE that does not add up": dict(size=[HEIGHT, WIDTH], counts=[10, 5]),
    "RLE of nothing": dict(size=[HEIGHT, WIDTH], counts=[HEIGHT * WIDTH]),
    "RLE without counts": dict(size=[HEIGHT, WIDTH]),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_unusable_mask_costs_the_annotation_only_where_masks_are_trained(case, write_coco, caplog):
    content = coco_content()
    content["annotations"][0]["segmentation"] = BAD_MASKS[case]
    entry = write_coco(content)
    boxes = annotations_of(register(entry))
    assert len(boxes) == 4 and "segmentation" not in boxes[0] and "segmentation" in boxes[1]

    with caplog.at_level(logging.WARNING, "rsb_d2"):
        masks = annotations_of(register(entry, masks=True))
    assert len(masks) == 3 and all("segmentation" in a for a in masks)
    assert "1 without a mask that can be used (ids: 1)" in caplog.text


def test_usable_polygons_of_a_mask_are_kept(write_coco):
    content = coco_content()
    good = content["annotations"][0]["segmentation"][0]
    content["annotations"][0]["segmentation"] = [[1, 2, 3], good, []]
    dicts = register(write_coco(content), masks=True)
    assert dicts[0]["annotations"][0]["segmentation"] == [good]
    assert COCO(MetadataCatalog.get("mine").json_file).annToMask(
        COCO(MetadataCatalog.get("mine").json_file).anns[1]
    ).sum() == pytest.approx(600)


def test_data_without_masks(write_coco):
    content = coco_content()
    for a in content["annotations"]:
        del a["segmentation"]
    entry = write_coco(content)
    assert len(annotations_of(register(entry))) == 4
    with pytest.raises(UserError, match="write MODEL.MASK_ON False"):
        register(entry, masks=True)


def test_rle_needs_bitmask_format_to_be_trained_on(write_coco):
    content = coco_content()
    counts = [100, 30, HEIGHT * WIDTH - 130]
    content["annotations"][0]["segmentation"] = dict(size=[HEIGHT, WIDTH], counts=counts)
    entry = write_coco(content)
    with pytest.raises(UserError, match="mine has 1 masks in RLE.*write INPUT.MASK_FORMAT bitmask"):
        register(entry, masks=True)

    register_coco_json(make_cfg(entry, test=["mine"], masks=True))  # evaluation takes it
    cfg = make_cfg(entry, train=["mine"], masks=True)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    register_coco_json(cfg)
    mapped = DatasetMapper(cfg, is_train=True)(DatasetCatalog.get("mine")[0])
    assert len(mapped["instances"]) == 2


def test_a_category_that_only_groups_others(write_coco, caplog):
    """As Roboflow exports a project that is named like its class."""
    content = coco_content()
    names = [c["name"] for c in content["categories"]]
    for category in content["categories"]:
        category["supercategory"] = names[0]
    content["categories"].insert(0, {"id": 0, "name": names[0], "supercategory": "none"})
    with caplog.at_level(logging.INFO, "rsb_d2"):
        register(write_coco(content), test=["mine"])
    assert sorted(MetadataCatalog.get("mine").thing_classes) == sorted(names)
    assert "1 categories left out that only group others" in caplog.text
    assert [c["id"] for c in COCO(MetadataCatalog.get("mine").json_file).cats.values()] == [
        c["id"] for c in content["categories"][1:]
    ]
    assert evaluate_perfect_predictions("mine")["AP"] == pytest.approx(100)
    content["annotations"][0]["category_id"] = 0  # now it is used
    with pytest.raises(UserError, match="category names are there more than once"):
        register(write_coco(content, "used"), test=["used"])


@pytest.mark.parametrize("is_used", [False, True])
def test_a_group_is_left_out_of_all_splits_or_of_none(is_used, write_coco):
    content = coco_content()
    for category in content["categories"]:
        category["supercategory"] = "pets"
    content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
    entries = [write_coco(content, "one")]
    if is_used:
        content["annotations"][0]["category_id"] = 0
    entries.append(write_coco(content, "two"))
    names = ["pets", "cat", "dog"] if is_used else ["cat", "dog"]
    # The second file decides along with the first, whether it is in use or not.
    for test in (["one"], ["two"], ["one", "two"]):
        register_coco_json(make_cfg(*entries, test=test, num_classes=len(names)))
        assert [MetadataCatalog.get(name).thing_classes for name in test] == [names] * len(test)
    assert evaluate_perfect_predictions("one")["AP"] == pytest.approx(100)


def test_an_unzipped_export_of_roboflow(tmp_path, catalogs, cache):
    content = coco_content()
    for category in content["categories"]:
        category["supercategory"] = "dog"  # the name of the project
    content["categories"].insert(0, {"id": 0, "name": "dog", "supercategory": "none"})
    for folder in ("train", "valid", "test"):
        (tmp_path / "export" / folder).mkdir(parents=True)
        for i in (10, 20, 30):
            name = tmp_path / "export" / folder / f"{i}.jpg"
            Image.new("RGB", (WIDTH, HEIGHT)).save(name)
        path = tmp_path / "export" / folder / "_annotations.coco.json"
        path.write_text(json.dumps(content))
        content["annotations"] = content["annotations"][:1]  # the others have no cat
    entry = ["pets", str(tmp_path / "export")]
    register_coco_json(make_cfg(entry, train=["pets_train"], test=["pets_val", "pets_test"]))
    for name, number in {"pets_train": 4, "pets_val": 1, "pets_test": 1}.items():
        assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"]
        assert len(annotations_of(DatasetCatalog.get(name))) == number
    with pytest.raises(UserError, match="pets: .* has no train/_annotations.coco.json"):
        register_coco_json(make_cfg(["pets", str(tmp_path)]))


def test_categories_that_differ_only_in_case_are_a_warning(write_coco, caplog):
    content = coco_content()
    content["categories"][0]["name"] = "Cat"
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        register(write_coco(content))
    assert "categories differ only in upper and lower case or blanks: cat, Cat" in caplog.text


def test_names_of_images_with_backslashes(write_coco, images):
    (images / "a").mkdir()
    (images / "10.jpg").rename(images / "a" / "10.jpg")
    (images / "20.jpg").rename(images / "b\\20.jpg")  # such a name is left as it is
    content = coco_content()
    content["images"][0]["file_name"] = "a\\10.jpg"
    content["images"][1]["file_name"] = "b\\20.jpg"
    names = [
        os.path.relpath(record["file_name"], images) for record in register(write_coco(content))
    ]
    assert sorted(names) == ["30.jpg", "a/10.jpg", "b\\20.jpg"]
    content["images"][0]["file_name"] = "..\\10.jpg"
    with pytest.raises(UserError, match="1 of 3 image files are not in"):
        register(write_coco(content, "outside"))
