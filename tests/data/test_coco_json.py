"""DATASETS.COCO_JSON: registration, and what the stock readers and evaluators then get."""

import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from rsb_d2 import UserError
from rsb_d2.data import register_coco_json
from tests.helpers.data.coco_files import (
    HEIGHT,
    WIDTH,
    annotations_of,
    coco_content,
    evaluate_perfect_predictions,
    make_cfg,
    register,
)

# ---- a file without mistakes ----


def test_good_file_is_read_as_detectron2_reads_it(write_coco, images, cache, tmp_path):
    entry = write_coco(coco_content())
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


LATIN_1 = os.fsdecode(b"caf\xe9.jpg")
NAMES = [LATIN_1, "new\nline.jpg", "-dash.jpg", "long" * 60 + ".jpg", "\x1b[31m.jpg"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_of_a_file(write_coco, images, name):
    (images / "20.jpg").rename(images / name)
    content = coco_content()
    content["images"][1]["file_name"] = name
    content["annotations"][0]["bbox"] = [0, 0, 0, 0]  # so that there is a corrected copy
    entry = write_coco(content, "m" * 240)
    dicts = register(entry)
    checked = MetadataCatalog.get(entry[0]).json_file
    assert dicts == load_coco_json(checked, entry[2], "same") and len(dicts) == 3
    assert dicts[1]["file_name"] == str(images / name)


def test_crowds_and_images_without_annotations_are_kept(write_coco):
    content = coco_content()
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[5:9, 5:15] = 1
    runs = [5 * HEIGHT + 5] + [4, HEIGHT - 4] * 10
    runs[-1] = HEIGHT * WIDTH - sum(runs[:-1])
    crowd = dict(size=[HEIGHT, WIDTH], counts=runs)
    content["annotations"][3].update(iscrowd=1, segmentation=crowd)
    dicts = register(write_coco(content), masks=True)

    assert [len(d["annotations"]) for d in dicts] == [2, 2, 0]
    kept = dicts[1]["annotations"][1]
    assert kept["iscrowd"] == 1
    assert np.array_equal(mask_util.decode(kept["segmentation"]), mask)


# ---- entries and names ----


@pytest.mark.parametrize(
    "entry", [["a"], "abc", ["a", "b", 3], ["", "b", "c"], ["a", "b", "c", "d"], 5]
)
def test_entry_of_wrong_shape(entry):
    with pytest.raises(UserError, match=r"DATASETS.COCO_JSON has the entry .*write\s+\[\[name"):
        register_coco_json(make_cfg(entry))


def test_same_entry_again_does_nothing(write_coco):
    entry = write_coco(coco_content())
    register(entry)
    registered, metadata = DatasetCatalog["mine"], MetadataCatalog.get("mine")
    checked = registered.checked
    register_coco_json(make_cfg(entry, tuple(entry), train=["mine"]))
    assert DatasetCatalog["mine"] is registered and registered.checked is checked
    assert MetadataCatalog.get("mine") is metadata


def test_another_entry_under_the_same_name(write_coco, tmp_path):
    entry = write_coco(coco_content())
    other = ["mine", entry[1], str(tmp_path)]
    with pytest.raises(UserError, match="mine is registered already, with .*choose another name"):
        register_coco_json(make_cfg(entry, other))


def test_name_of_a_builtin_data_set(write_coco):
    _, *files = write_coco(coco_content())
    with pytest.raises(UserError, match="coco_2017_train is the name .*choose another name"):
        register_coco_json(make_cfg(["coco_2017_train", *files]))


def test_file_changed_since_is_checked_again(write_coco):
    content = coco_content()
    register(write_coco(content))
    content["categories"][0]["name"] = "wolf"
    content["annotations"].pop()
    dicts = register(write_coco(content))
    assert MetadataCatalog.get("mine").thing_classes == ["cat", "wolf"]
    assert len(annotations_of(dicts)) == 3


def test_paths_of_home_and_working_directory(write_coco, tmp_path, monkeypatch):
    write_coco(coco_content())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "images")
    assert len(register(["relative", "../mine.json", "."])) == 3
    dicts = register(["home", "~/mine.json", "~/images"])
    monkeypatch.chdir("/")
    assert all(os.path.isfile(d["file_name"]) for d in dicts)


# ---- data sets that are not used now ----


def test_unused_entry_is_read_when_it_is_asked_for(write_coco, images):
    broken = ["broken", "/nowhere/broken.json", str(images)]
    content = coco_content()
    content["annotations"][0]["bbox"][2] = 0
    late = write_coco(content, "late")
    register_coco_json(make_cfg(broken, late))
    with pytest.raises(UserError, match="data set broken"):
        DatasetCatalog.get("broken")
    assert len(annotations_of(DatasetCatalog.get("late"))) == 3
    assert evaluate_perfect_predictions("late")["AP"] == pytest.approx(100)


def test_evaluation_without_the_training_data(write_coco, images):
    gone = ["gone", "/nowhere/gone.json", str(images)]
    cfg = make_cfg(gone, write_coco(coco_content()), train=["gone"], test=["mine"])
    with pytest.raises(UserError, match="data set gone"):
        register_coco_json(cfg)
    register_coco_json(cfg, eval_only=True)
    assert evaluate_perfect_predictions("mine")["AP"] == pytest.approx(100)


# ---- data sets against one another and against the config ----


def test_categories_must_be_the_same(write_coco):
    content = coco_content()
    train = write_coco(content, "train")
    content["categories"][0]["id"] = 1  # dog comes first now
    content["annotations"] = [dict(a, category_id=1) for a in content["annotations"]]
    test = write_coco(content, "test")
    with pytest.raises(UserError, match="category 0 is 'cat' in train .*, 'dog' in test"):
        register_coco_json(make_cfg(train, test, train=["train"], test=["test"]))

    content = coco_content()
    content["categories"].append(dict(id=9, name="hen"))
    more = write_coco(content, "more")
    with pytest.raises(UserError, match=r"category 2 is missing in train \(2 in all\), 'hen' in"):
        register_coco_json(make_cfg(train, more, train=["train"], test=["more"]))


def test_other_ids_for_the_same_categories(write_coco):
    content = coco_content()
    train = write_coco(content, "train")
    for c in content["categories"] + content["annotations"]:
        key = "category_id" if "category_id" in c else "id"
        c[key] = {3: 0, 7: 1}[c[key]]
    test = write_coco(content, "test")
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
def test_number_of_classes(architecture, key, write_coco):
    cfg = make_cfg(write_coco(coco_content()), test=["mine"], num_classes=80)
    cfg.MODEL.META_ARCHITECTURE = architecture
    if key is not None:
        with pytest.raises(UserError, match=rf"{key} is 80, but mine has 2.*write {key} 2"):
            register_coco_json(cfg)
        cfg.merge_from_list([key, 2])
    register_coco_json(cfg)


def test_nothing_to_train_on(write_coco):
    content = coco_content()
    background = write_coco(dict(content, annotations=[]), "background")
    with pytest.raises(UserError, match="DATASETS.TRAIN: there is no usable annotation in backgr"):
        register(background)
    full = write_coco(content, "full")
    register_coco_json(make_cfg(full, background, train=["full", "background"]))
    assert annotations_of(DatasetCatalog.get("background")) == []


def test_nothing_to_evaluate(write_coco):
    content = coco_content()
    for a in content["annotations"]:
        a["iscrowd"] = 1
    entry = write_coco(content)
    with pytest.raises(UserError, match="mine has no usable annotation, so AP cannot be computed"):
        register_coco_json(make_cfg(entry, test=["mine"]))
