"""DATASETS.COCO_JSON: registration, the check of each file, and what the stock readers then get."""

import contextlib
import copy
import io
import json
import logging
import os
import random

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.data import register_coco_json

WIDTH, HEIGHT = 100, 80


def box_polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def annotation(id, image_id, category_id, bbox, **others):
    record = dict(id=id, image_id=image_id, category_id=category_id, bbox=bbox, iscrowd=0)
    record.update(area=bbox[2] * bbox[3], segmentation=[box_polygon(*bbox)], **others)
    return record


def coco_content():
    """Three images, two categories with ids that have gaps and are not in order."""
    return dict(
        images=[dict(id=i, file_name=f"{i}.jpg", width=WIDTH, height=HEIGHT) for i in (10, 20, 30)],
        categories=[dict(id=7, name="dog"), dict(id=3, name="cat")],
        annotations=[
            annotation(1, 10, 7, [10, 10, 30, 20]),
            annotation(2, 10, 3, [50, 30, 40, 40]),
            annotation(3, 20, 3, [0, 0, 100, 80]),
            annotation(4, 20, 7, [5, 5, 12, 12]),
        ],
    )


@pytest.fixture(autouse=True)
def catalogs():
    """Leave Detectron2's global catalogs as they were."""
    before = [dict(DatasetCatalog.data), dict(MetadataCatalog.data)]
    yield
    DatasetCatalog.data, MetadataCatalog.data = before


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rsb_d2" / "coco_json"


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in (10, 20, 30):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture
def write(tmp_path, images):
    """Write a COCO-format file; return its entry for DATASETS.COCO_JSON."""

    def write_(content, name="mine"):
        path = tmp_path / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return [name, str(path), str(images)]

    return write_


def make_cfg(*entries, train=(), test=(), masks=False, num_classes=2):
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.DATASETS.COCO_JSON = list(entries)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    cfg.MODEL.MASK_ON = masks
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    return cfg


def register(entry, **options):
    register_coco_json(make_cfg(entry, train=[entry[0]], **options))
    return DatasetCatalog.get(entry[0])


def annotations_of(dicts):
    return [a for d in dicts for a in d["annotations"]]


def evaluate_perfect_predictions(name):
    """Return the stock evaluator's results for predictions that are the ground truth."""
    evaluator = COCOEvaluator(name, ("bbox",), False, use_fast_impl=False)
    evaluator.reset()
    for d in DatasetCatalog.get(name):
        objects = [a for a in d["annotations"] if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        instances = Instances((d["height"], d["width"]))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.ones(len(objects))
        instances.pred_classes = torch.tensor([a["category_id"] for a in objects]).long()
        evaluator.process([d], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()["bbox"]


# ---- a file without mistakes ----


def test_good_file_is_read_as_detectron2_reads_it(write, images, cache, tmp_path):
    entry = write(coco_content())
    before = (tmp_path / "mine.json").read_bytes()
    dicts = register(entry)
    expected = load_coco_json(entry[1], entry[2], "the_same_by_detectron2")

    assert dicts == expected and len(dicts) == 3
    assert [a["category_id"] for a in annotations_of(dicts)] == [1, 0, 0, 1]
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.evaluator_type == "coco"
    assert metadata.image_root == str(images)
    assert metadata.json_file == entry[1]
    assert (tmp_path / "mine.json").read_bytes() == before
    assert not cache.exists()


def test_stock_evaluator_and_mapper_take_it(write):
    entry = write(coco_content())
    dicts = register(entry, masks=True, test=["mine"])
    assert evaluate_perfect_predictions("mine")["AP"] == pytest.approx(100)

    cfg = make_cfg(entry, masks=True)
    instances = DatasetMapper(cfg, is_train=True)(dicts[0])["instances"]
    assert len(instances) == 2 and instances.has("gt_masks")


def test_crowds_and_images_without_annotations_are_kept(write):
    content = coco_content()
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[5:9, 5:15] = 1
    runs = [5 * HEIGHT + 5] + [4, HEIGHT - 4] * 10
    runs[-1] = HEIGHT * WIDTH - sum(runs[:-1])
    crowd = dict(size=[HEIGHT, WIDTH], counts=runs)
    content["annotations"][3].update(iscrowd=1, segmentation=crowd)
    dicts = register(write(content), masks=True)

    assert [len(d["annotations"]) for d in dicts] == [2, 2, 0]
    kept = dicts[1]["annotations"][1]
    assert kept["iscrowd"] == 1
    assert np.array_equal(mask_util.decode(kept["segmentation"]), mask)


# ---- what is dropped, and what is filled in ----


def edit(index, **fields):
    def edit_(content):
        content["annotations"][index].update(fields)

    return edit_


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
def test_unusable_annotation_is_dropped_from_training_and_evaluation(case, write, caplog, cache):
    mistake, message = DROPS[case]
    content = coco_content()
    mistake(content)
    entry = write(content)
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


def test_drops_are_counted_in_one_line(write, caplog):
    content = coco_content()
    for i in range(7):
        content["annotations"].append(annotation(100 + i, 10, 3, [5, 5, 0, 1]))
    content["annotations"].append(annotation(200, 10, 3, [500, 5, 1, 1]))
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        register(write(content))
    (record,) = [r for r in caplog.records if r.name.startswith("rsb_d2")]
    assert record.getMessage().endswith(
        "dropped 8 of 12 annotations: "
        "7 with a box of no area (first ids: 100, 101, 102, 103, 104, ...); "
        "1 with a box outside the image (ids: 200)"
    )


def test_box_partly_outside_is_kept_and_told(write, caplog):
    content = coco_content()
    content["annotations"][0]["bbox"] = [80, 10, 30, 20]
    content["annotations"][2]["bbox"] = [0, 0, 100.9, 80]  # less than a pixel: rounding
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        dicts = register(write(content))
    assert annotations_of(dicts)[0]["bbox"] == [80, 10, 30, 20]
    assert MetadataCatalog.get("mine").json_file.endswith("mine.json")
    assert "1 of 4 boxes reach beyond their image (ids: 1)" in caplog.text
    assert "[x, y, width, height]" not in caplog.text


def test_corners_written_as_width_and_height_are_suspected(write, caplog):
    content = coco_content()
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x + 45, y + 40, x + 45 + w, y + 40 + h]
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        register(write(content))
    assert "is 'bbox' [x, y, width, height]?" in caplog.text


def test_fields_that_pycocotools_needs_are_filled_in(write):
    content = coco_content()
    half = [10, 10, 40, 10, 10, 30]  # half of the box
    content["annotations"][0].update(segmentation=[half])
    content["annotations"][1].pop("segmentation")
    for a in content["annotations"]:
        del a["area"], a["iscrowd"]
    dicts = register(write(content), test=["mine"])

    coco = COCO(MetadataCatalog.get("mine").json_file)
    assert [coco.anns[i]["area"] for i in (1, 2, 3, 4)] == [300, 1600, 8000, 144]
    assert all(a["iscrowd"] == 0 for a in coco.anns.values())
    assert len(annotations_of(dicts)) == 4
    assert evaluate_perfect_predictions("mine")["AP"] == pytest.approx(100)


def test_area_of_rle(write):
    content = coco_content()
    counts = [100, 30, HEIGHT * WIDTH - 130]
    rle = mask_util.frPyObjects(dict(size=[HEIGHT, WIDTH], counts=counts), HEIGHT, WIDTH)
    compressed = dict(size=[HEIGHT, WIDTH], counts=rle["counts"].decode())
    content["annotations"][0].update(
        segmentation=dict(size=[HEIGHT, WIDTH], counts=counts), area=None
    )
    content["annotations"][1].update(segmentation=compressed, area=float("nan"))
    register(write(content))
    coco = COCO(MetadataCatalog.get("mine").json_file)
    assert [coco.anns[i]["area"] for i in (1, 2)] == [30, 30]


def test_annotation_ids_from_zero_count_in_evaluation(write):
    content = coco_content()
    for i, a in enumerate(content["annotations"]):
        a["id"] = i - 1
    entry = write(content)
    register(entry, test=["mine"])
    assert sorted(COCO(MetadataCatalog.get("mine").json_file).anns) == [1, 2, 3, 4]
    assert evaluate_perfect_predictions("mine")["AP"] == pytest.approx(100)


def test_ignored_objects_become_crowds(write):
    content = coco_content()
    content["annotations"][0]["ignore"] = 1
    content["annotations"][1]["ignore"] = 0
    dicts = register(write(content), test=["mine"])
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
def test_unusable_mask_costs_the_annotation_only_where_masks_are_trained(case, write, caplog):
    content = coco_content()
    content["annotations"][0]["segmentation"] = BAD_MASKS[case]
    entry = write(content)
    boxes = annotations_of(register(entry))
    assert len(boxes) == 4 and "segmentation" not in boxes[0] and "segmentation" in boxes[1]

    with caplog.at_level(logging.WARNING, "rsb_d2"):
        masks = annotations_of(register(entry, masks=True))
    assert len(masks) == 3 and all("segmentation" in a for a in masks)
    assert "1 without a mask that can be used (ids: 1)" in caplog.text


def test_usable_polygons_of_a_mask_are_kept(write):
    content = coco_content()
    good = content["annotations"][0]["segmentation"][0]
    content["annotations"][0]["segmentation"] = [[1, 2, 3], good, []]
    dicts = register(write(content), masks=True)
    assert dicts[0]["annotations"][0]["segmentation"] == [good]
    assert COCO(MetadataCatalog.get("mine").json_file).annToMask(
        COCO(MetadataCatalog.get("mine").json_file).anns[1]
    ).sum() == pytest.approx(600)


def test_data_without_masks(write):
    content = coco_content()
    for a in content["annotations"]:
        del a["segmentation"]
    entry = write(content)
    assert len(annotations_of(register(entry))) == 4
    with pytest.raises(UserError, match="write MODEL.MASK_ON False"):
        register(entry, masks=True)


def test_rle_needs_bitmask_format_to_be_trained_on(write):
    content = coco_content()
    counts = [100, 30, HEIGHT * WIDTH - 130]
    content["annotations"][0]["segmentation"] = dict(size=[HEIGHT, WIDTH], counts=counts)
    entry = write(content)
    with pytest.raises(UserError, match="mine has 1 masks in RLE.*write INPUT.MASK_FORMAT bitmask"):
        register(entry, masks=True)

    register_coco_json(make_cfg(entry, test=["mine"], masks=True))  # evaluation takes it
    cfg = make_cfg(entry, train=["mine"], masks=True)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    register_coco_json(cfg)
    mapped = DatasetMapper(cfg, is_train=True)(DatasetCatalog.get("mine")[0])
    assert len(mapped["instances"]) == 2


# ---- what stops with an error ----


def replaced(key, value):
    return lambda content: content.update({key: value})


def without(key):
    return lambda content: content.pop(key)


def item(key, index, **fields):
    return lambda content: content[key][index].update(fields)


def field_removed(key, index, field):
    return lambda content: content[key][index].pop(field)


ERRORS = {
    "no images key": (without("images"), "there is no key 'images'"),
    "no annotations key": (without("annotations"), "there is no key 'annotations'"),
    "no categories key": (without("categories"), "there is no key 'categories'"),
    "images not a list": (replaced("images", {}), "'images' must be a list of objects"),
    "annotation not an object": (
        replaced("annotations", [1]),
        "'annotations' must be a list of objects",
    ),
    "no categories": (replaced("categories", []), "'categories' is empty"),
    "no images": (replaced("images", []), "'images' is empty"),
    "category id twice": (
        item("categories", 0, id=3),
        r"1 ids in 'categories' are there more than once \(3\)",
    ),
    "category name twice": (
        item("categories", 0, name="cat"),
        r"1 category names are there more than once \(cat\)",
    ),
    "category without name": (
        field_removed("categories", 0, "name"),
        r"1 categories have no 'name' that is a text \(ids: 7\)",
    ),
    "category id as text": (
        item("categories", 0, id="7"),
        r"1 of 'categories' have no 'id' that is an integer",
    ),
    "image id twice": (
        item("images", 1, id=10),
        r"1 ids in 'images' are there more than once \(10\)",
    ),
    "image id as text": (
        item("images", 1, id="20"),
        r"1 of 'images' have no 'id' that is an integer.*\(positions in the list: 1\)",
    ),
    "image without width": (
        field_removed("images", 1, "width"),
        r"1 images have no 'height' and 'width' that are integers above 0 \(ids: 20\)",
    ),
    "image of height 0": (item("images", 1, height=0), r"'height' and 'width'.*\(ids: 20\)"),
    "image width as text": (item("images", 1, width="100"), r"'height' and 'width'.*\(ids: 20\)"),
    "image without file name": (
        field_removed("images", 1, "file_name"),
        r"1 images have no 'file_name' that is a text \(ids: 20\)",
    ),
    "file name out of the folder": (
        item("images", 1, file_name="a/../../x.jpg"),
        r"1 images have a 'file_name' that leads out of the image folder.*\(ids: 20\)",
    ),
    "absolute file name": (
        item("images", 1, file_name="/etc/passwd"),
        r"1 images have a 'file_name' that leads out of the image folder.*\(ids: 20\)",
    ),
    "image file missing": (
        item("images", 1, file_name="nowhere.jpg"),
        r"1 of 3 image files are not in .*images \(nowhere.jpg\)$",
    ),
    "annotation id twice": (
        edit(0, id=2),
        r"1 ids in 'annotations' are there more than once \(2\)",
    ),
    "annotation without id": (
        field_removed("annotations", 3, "id"),
        r"1 of 'annotations' have no 'id' that is an integer.*\(positions in the list: 3\)",
    ),
    "unknown category": (
        edit(0, category_id=5),
        r"1 annotations are of a category that is not in 'categories' \(ids 5\) \(ids: 1\)",
    ),
    "category of annotation as text": (
        edit(0, category_id="7"),
        r"1 annotations have no 'category_id' that is an integer \(ids: 1\)",
    ),
    "image of annotation as text": (
        edit(0, image_id="10"),
        r"1 annotations have no 'image_id' that is an integer \(ids: 1\)",
    ),
    "no box": (field_removed("annotations", 0, "bbox"), r"have no 'bbox' that is .*\(ids: 1\)"),
    "box as text": (edit(0, bbox="1 2 3 4"), r"have no 'bbox' that is .*\(ids: 1\)"),
    "box of text": (edit(0, bbox=["1", "2", "3", "4"]), r"have no 'bbox' that is .*\(ids: 1\)"),
    "box of three": (edit(0, bbox=[1, 2, 3]), r"have no 'bbox' that is .*\(ids: 1\)"),
    "iscrowd as text": (edit(0, iscrowd="0"), r"'iscrowd' that is not 0 or 1 \(ids: 1\)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_names_data_set_file_and_first_ids(case, write):
    mistake, message = ERRORS[case]
    content = coco_content()
    mistake(content)
    entry = write(content)
    with pytest.raises(UserError, match=message) as error:
        register(entry)
    assert str(error.value).startswith(f"data set mine: {entry[1]}: ")
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not valid JSON: .*line 1 column 2"),
        ("", "is not valid JSON"),
        ("[]", "at the top there must be an object with the keys .*, not a list"),
        ("\ufeff{}", "is not valid JSON: Unexpected UTF-8 BOM"),
    ],
)
def test_broken_json(text, message, write):
    with pytest.raises(UserError, match=message):
        register(write(text))


def test_file_that_is_not_text(write):
    entry = write("")
    with open(entry[1], "wb") as f:
        f.write(json.dumps(coco_content()).encode("utf-16"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        register(entry)


def test_missing_files(write, tmp_path, images):
    with pytest.raises(UserError, match="nowhere.json: there is no such annotation file"):
        register(["a", str(tmp_path / "nowhere.json"), str(images)])
    with pytest.raises(UserError, match="cannot be read: .*directory"):
        register(["b", str(images), str(images)])
    name, json_file, _ = write(coco_content())
    with pytest.raises(UserError, match=r"3 of 3 image files are not in .*is it the right image"):
        register([name, json_file, str(tmp_path / "other")])


def test_images_in_subfolders(write, images):
    (images / "deep" / "er").mkdir(parents=True)
    (images / "10.jpg").rename(images / "deep" / "er" / "10.jpg")
    content = coco_content()
    content["images"][0]["file_name"] = "deep/er/10.jpg"
    assert os.path.isfile(register(write(content))[0]["file_name"])


# ---- entries and names ----


@pytest.mark.parametrize(
    "entry", [["a", "b"], "abc", ["a", "b", 3], ["", "b", "c"], ["a", "b", "c", "d"], 5]
)
def test_entry_of_wrong_shape(entry):
    with pytest.raises(UserError, match=r"DATASETS.COCO_JSON has the entry .*write\s+\[\[name"):
        register_coco_json(make_cfg(entry))


def test_entries_from_the_command_line(write):
    entry = write(coco_content())
    cfg = make_cfg()
    cfg.merge_from_list(["DATASETS.COCO_JSON", str([entry]), "DATASETS.TRAIN", "('mine',)"])
    register_coco_json(cfg)
    assert len(DatasetCatalog.get("mine")) == 3


def test_same_entry_again_does_nothing(write):
    entry = write(coco_content())
    register(entry)
    registered, metadata = DatasetCatalog["mine"], MetadataCatalog.get("mine")
    checked = registered.checked
    register_coco_json(make_cfg(entry, tuple(entry), train=["mine"]))
    assert DatasetCatalog["mine"] is registered and registered.checked is checked
    assert MetadataCatalog.get("mine") is metadata


def test_another_entry_under_the_same_name(write, tmp_path):
    entry = write(coco_content())
    other = ["mine", entry[1], str(tmp_path)]
    with pytest.raises(UserError, match="mine is registered already, with .*choose another name"):
        register_coco_json(make_cfg(entry, other))


def test_name_of_a_builtin_data_set(write):
    _, *files = write(coco_content())
    with pytest.raises(UserError, match="coco_2017_train is the name .*choose another name"):
        register_coco_json(make_cfg(["coco_2017_train", *files]))


def test_file_changed_since_is_checked_again(write):
    content = coco_content()
    register(write(content))
    content["categories"][0]["name"] = "wolf"
    content["annotations"].pop()
    dicts = register(write(content))
    assert MetadataCatalog.get("mine").thing_classes == ["cat", "wolf"]
    assert len(annotations_of(dicts)) == 3


def test_mended_file_is_taken_after_an_error(write):
    with pytest.raises(UserError):
        register(write("{"))
    assert len(register(write(coco_content()))) == 3


def test_paths_of_home_and_working_directory(write, tmp_path, monkeypatch):
    write(coco_content())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "images")
    assert len(register(["relative", "../mine.json", "."])) == 3
    dicts = register(["home", "~/mine.json", "~/images"])
    monkeypatch.chdir("/")
    assert all(os.path.isfile(d["file_name"]) for d in dicts)


def test_paths_of_a_path_handler(write, tmp_path):
    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["bucket://"]

        def _get_local_path(self, path, **kwargs):
            return path.replace("bucket://", f"{tmp_path}/")

        def _open(self, path, mode="r", **kwargs):
            return open(self._get_local_path(path), mode)

    write(coco_content())
    PathManager.register_handler(Handler(), allow_override=True)
    dicts = register(["remote", "bucket://mine.json", "bucket://images"])
    assert dicts[0]["file_name"] == "bucket://images/10.jpg"
    assert Image.open(PathManager.open(dicts[0]["file_name"], "rb")).size == (WIDTH, HEIGHT)


# ---- data sets that are not used now ----


def test_unused_entry_is_read_when_it_is_asked_for(write, images):
    broken = ["broken", "/nowhere/broken.json", str(images)]
    content = coco_content()
    content["annotations"][0]["bbox"][2] = 0
    late = write(content, "late")
    register_coco_json(make_cfg(broken, late))
    with pytest.raises(UserError, match="data set broken"):
        DatasetCatalog.get("broken")
    assert len(annotations_of(DatasetCatalog.get("late"))) == 3
    assert evaluate_perfect_predictions("late")["AP"] == pytest.approx(100)


def test_evaluation_without_the_training_data(write, images):
    gone = ["gone", "/nowhere/gone.json", str(images)]
    cfg = make_cfg(gone, write(coco_content()), train=["gone"], test=["mine"])
    with pytest.raises(UserError, match="data set gone"):
        register_coco_json(cfg)
    register_coco_json(cfg, eval_only=True)
    assert evaluate_perfect_predictions("mine")["AP"] == pytest.approx(100)


# ---- data sets against one another and against the config ----


def test_categories_must_be_the_same(write):
    content = coco_content()
    train = write(content, "train")
    content["categories"][0]["id"] = 1  # dog comes first now
    content["annotations"] = [dict(a, category_id=1) for a in content["annotations"]]
    test = write(content, "test")
    with pytest.raises(UserError, match="category 0 is 'cat' in train .*, 'dog' in test"):
        register_coco_json(make_cfg(train, test, train=["train"], test=["test"]))

    content = coco_content()
    content["categories"].append(dict(id=9, name="hen"))
    more = write(content, "more")
    with pytest.raises(UserError, match=r"category 2 is missing in train \(2 in all\), 'hen' in"):
        register_coco_json(make_cfg(train, more, train=["train"], test=["more"]))


def test_other_ids_for_the_same_categories(write):
    content = coco_content()
    train = write(content, "train")
    for c in content["categories"] + content["annotations"]:
        key = "category_id" if "category_id" in c else "id"
        c[key] = {3: 0, 7: 1}[c[key]]
    test = write(content, "test")
    register_coco_json(make_cfg(train, test, train=["train"], test=["test"]))
    assert evaluate_perfect_predictions("test")["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    "architecture, key",
    [
        ("GeneralizedRCNN", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("PanopticFPN", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("RetinaNet", "MODEL.RETINANET.NUM_CLASSES"),
        ("ProposalNetwork", None),
        ("SomebodysOwn", None),
    ],
)
def test_number_of_classes(architecture, key, write):
    cfg = make_cfg(write(coco_content()), test=["mine"], num_classes=80)
    cfg.MODEL.META_ARCHITECTURE = architecture
    if key is not None:
        with pytest.raises(UserError, match=rf"{key} is 80, but mine has 2.*write {key} 2"):
            register_coco_json(cfg)
        cfg.merge_from_list([key, 2])
    register_coco_json(cfg)


def test_nothing_to_train_on(write):
    content = coco_content()
    background = write(dict(content, annotations=[]), "background")
    with pytest.raises(UserError, match="DATASETS.TRAIN: there is no usable annotation in backgr"):
        register(background)
    full = write(content, "full")
    register_coco_json(make_cfg(full, background, train=["full", "background"]))
    assert annotations_of(DatasetCatalog.get("background")) == []


def test_nothing_to_evaluate(write):
    content = coco_content()
    for a in content["annotations"]:
        a["iscrowd"] = 1
    entry = write(content)
    with pytest.raises(UserError, match="mine has no usable annotation, so AP cannot be computed"):
        register_coco_json(make_cfg(entry, test=["mine"]))


# ---- anything at all ----

JUNK = [None, 0, 1, -1, 2.5, float("nan"), float("inf"), "", "7", [], [1], {}, True, 10**5]


def test_what_passes_the_check_can_be_read_and_evaluated(write):
    """Files with random mistakes either stop with a UserError or work in the stock readers."""
    rng = random.Random(0)
    passed = 0
    for _ in range(400):
        content = coco_content()
        for _ in range(rng.randint(1, 2)):
            record = rng.choice([*content["annotations"], *content["images"]])
            key = rng.choice([*record, "ignore"])
            if rng.random() < 0.3:
                record.pop(key, None)
            elif isinstance(record.get(key), list) and rng.random() < 0.5:
                record[key] = [rng.choice([*JUNK, 5, 9]) for _ in record[key]]
            else:
                record[key] = rng.choice(JUNK)
        masks = rng.random() < 0.5
        try:
            dicts = register(write(content), masks=masks)
        except UserError:
            continue
        passed += 1
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(MetadataCatalog.get("mine").json_file)
            assert len(annotations_of(dicts)) == len(coco.anns)
            detections = [
                dict(copy.deepcopy(a), score=1.0) for a in coco.anns.values() if not a["iscrowd"]
            ]
            for task in ["bbox", "segm"][: 1 + masks]:
                evaluation = COCOeval(coco, coco.loadRes(detections), task)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                assert evaluation.stats[0] == pytest.approx(1)
    assert passed > 40
