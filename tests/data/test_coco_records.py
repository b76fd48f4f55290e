"""Records of annotation files equal those of ``load_coco_json``, and are read when asked for."""

import itertools
import json
import logging
import os
import pickle
import random
import re

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import logger as detectron2_logger

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.data import register_coco_json
from rsb_d2.data.coco_check import _Check, check_coco_json
from rsb_d2.data.coco_records import CocoRecords
from rsb_d2.data.datasets import detection_records, open_records, repeat_factors
from rsb_d2.data.loader import TrainLoader, build_sampler
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.data.coco_content import make_content


@pytest.fixture(autouse=True)
def catalogs(tmp_path, monkeypatch):
    """Leave Detectron2's global catalogs as they were."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    with catalogs_kept():
        yield


@pytest.fixture
def write(tmp_path):
    def write_(content, name="mine"):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        for image in content["images"]:
            file = tmp_path / "images" / image["file_name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return str(path), str(tmp_path / "images")

    return write_


def make_cfg(*names_and_files, masks=False):
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.DATASETS.COCO_JSON = [[name, *files] for name, files in names_and_files]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(name for name, _ in names_and_files), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.MASK_ON = 4, masks
    cfg.INPUT.MASK_FORMAT = "bitmask"
    return cfg


def kinds(value):
    """The types in a record: 1 == 1.0 == True, but they are not the same."""
    if isinstance(value, dict):
        return {key: kinds(v) for key, v in value.items()}
    return [kinds(v) for v in value] if isinstance(value, list) else type(value).__name__


def kinds_of_all(records):
    return [kinds(dict(record)) for record in records]


@pytest.mark.parametrize("masks", [False, True])
def test_checked_records_equal_detectron2s(masks, write):
    files = write(make_content())
    register_coco_json(make_cfg(("mine", files), masks=masks))
    records = DatasetCatalog.get("mine")
    expected = load_coco_json(*files, "the_same_by_detectron2")
    assert isinstance(records, CocoRecords) and len(records) == 30
    assert list(records) == expected and records == expected
    assert kinds_of_all(records) == kinds_of_all(expected)
    assert records[-1] == expected[-1] and records[3:9:2] == expected[3:9:2]
    assert [] + records == expected and records + [1] == expected + [1]
    assert all(isinstance(record, dict) for record in records)
    with pytest.raises(IndexError):
        records[30]
    ours, stock = MetadataCatalog.get("mine"), MetadataCatalog.get("the_same_by_detectron2")
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
        assert getattr(ours, key) == getattr(stock, key)


def spoil(content, seed):
    """What Detectron2 reads nevertheless, in its own way."""
    rng = np.random.default_rng(seed)
    if seed == 3:
        for image in content["images"]:
            image["id"] = f"no. {image['id']}"
        for annotation in content["annotations"]:
            annotation["image_id"] = f"no. {annotation['image_id']}"
    for annotation in content["annotations"]:
        kind = rng.integers(12)
        if kind == 0:
            annotation["segmentation"] = [[1, 2, 3, 4], [1, 2, 3, 4, 5]]  # which drops it
        elif kind == 1:
            annotation["segmentation"] = [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6.5]]
        elif kind == 2:
            annotation["segmentation"] = []
        elif kind == 3:
            annotation.pop("segmentation")
            annotation.pop("iscrowd")
        elif kind == 4:
            annotation.update(keypoints=[], bbox=[-5, 900, 0, 2**70])
        elif kind == 5:
            annotation["ignore"] = 0
    return content


@pytest.mark.parametrize("seed", range(4))
def test_data_sets_of_detectron2_are_read_as_detectron2_reads_them(seed, write, caplog):
    files = write(spoil(make_content(seed), seed))
    register_coco_instances("my_stock", {"some": "metadata"}, *files)
    before = MetadataCatalog.get("my_stock").as_dict()
    with caplog.at_level(logging.WARNING):
        expected = DatasetCatalog.get("my_stock")
    warned = [r.getMessage().split() for r in caplog.records]
    after = MetadataCatalog.get("my_stock").as_dict()
    MetadataCatalog.remove("my_stock")
    MetadataCatalog.get("my_stock").set(**before)

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        records = detection_records("my_stock", filter_empty=False)
    assert list(records) == expected
    assert isinstance(records, CocoRecords) == (seed != 3)  # text ids are left to Detectron2
    assert MetadataCatalog.get("my_stock").as_dict() == after
    for words in warned:
        assert any(set(r.getMessage().split()) <= set(words) for r in caplog.records), words


NOT_PLAIN = {
    "unknown image": lambda c: c["annotations"][0].update(image_id=-1),
    "unknown category": lambda c: c["annotations"][0].update(category_id=-1),
    "an id twice": lambda c: c["annotations"][0].update(id=c["annotations"][1]["id"]),
    "a text as id": lambda c: c["annotations"][0].update(id="7"),
    "a fraction as image id": lambda c: c["annotations"][0].update(
        image_id=float(c["annotations"][0]["image_id"])
    ),
    "an image twice": lambda c: c["images"].append(dict(c["images"][0])),
    "ignored": lambda c: c["annotations"][0].update(ignore=1),
    "without a box": lambda c: c["annotations"][0].update(bbox=[]),
    "no categories": lambda c: c.update(categories=[]),
}


@pytest.mark.parametrize("case", NOT_PLAIN)
def test_unusual_files_are_left_to_detectron2(case, write):
    content = make_content()
    NOT_PLAIN[case](content)
    files = write(content)
    register_coco_instances("my_stock", {}, *files)
    assert open_records("my_stock") is None


def test_other_functions_are_called_once():
    calls = []
    record = {"file_name": "a", "height": 1, "width": 1, "annotations": []}
    DatasetCatalog.register("of_a_script", lambda: calls.append(1) or [record])
    found = detection_records(["of_a_script"], filter_empty=False)
    assert found == [record] and len(calls) == 1


# ---- what is asked of all records at once ----


@pytest.mark.parametrize("filter_empty", [False, True])
@pytest.mark.parametrize("min_keypoints", [0, 9])
def test_selection_is_detectron2s(filter_empty, min_keypoints, write, caplog):
    for name, seed in (("a", 1), ("b", 2)):
        register_coco_instances(name, {}, *write(make_content(seed), name))

    def log_of(call):
        detectron2_logger._LOG_COUNTER.clear()  # which keeps a message from being said twice
        caplog.clear()
        with caplog.at_level(logging.INFO):
            records = call()
        text = re.sub(r"\x1b\[\d+m", "", "\n".join(r.getMessage() for r in caplog.records))
        return records, [line for line in text.splitlines() if "Removed" in line or "|" in line]

    options = dict(filter_empty=filter_empty, min_keypoints=min_keypoints)
    expected, table = log_of(lambda: get_detection_dataset_dicts(["a", "b"], **options))
    records, ours = log_of(lambda: detection_records(["a", "b"], **options))
    assert list(records) == expected
    assert records[-1] == expected[-1] and records[20:40:3] == expected[20:40:3]
    assert ours == table
    sizes = [[r["height"], r["width"]] for r in expected]
    assert records.sizes().tolist() == sizes
    assert records.has_rle()


@pytest.mark.parametrize("threshold", [0.1, 0.9, 3.0])
def test_repeat_factors_are_detectron2s(threshold, write):
    for name, seed in (("a", 1), ("b", 2)):
        register_coco_instances(name, {}, *write(make_content(seed, annotations=40), name))
    for filter_empty in (False, True):
        records = detection_records(["a", "b"], filter_empty=filter_empty)
        expected = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            list(records), threshold
        )
        assert torch.equal(repeat_factors(records, threshold), expected)


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_batches_of_a_list(sampler, workers, write):
    cfg = make_cfg(("mine", write(make_content())))
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = sampler, 0.9
    register_coco_json(cfg)
    packed = detection_records(["mine"])
    batches = []
    for records in (packed, [dict(record) for record in packed]):
        loader = TrainLoader(
            records,
            dict,
            lambda seed, records=records: build_sampler(cfg, records, seed),
            total_batch_size=4,
            num_workers=workers,
            seed=5,
        )
        batches.append([batch for batch, _ in zip(loader, range(30))])
    assert batches[0] == batches[1]


def test_stock_loader_takes_it(write):
    cfg = make_cfg(("mine", write(make_content())))
    register_coco_json(cfg)
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    batch = next(iter(build_detection_train_loader(cfg, mapper=dict)))
    assert len(batch) == 2 and all(image["annotations"] for image in batch)


def test_keys_that_are_set_are_remembered(write):
    register_coco_json(make_cfg(("mine", write(make_content()))))
    records, others = DatasetCatalog.get("mine"), DatasetCatalog.get("mine")
    for i, record in enumerate(records):  # as load_proposals_into_dataset does it
        record["number"] = i
    assert [record["number"] for record in records] == list(range(30))
    assert records.select(np.array([7, 3]))[1]["number"] == 3
    assert "number" not in others[3]
    assert pickle.loads(pickle.dumps(records))[3]["number"] == 3
    assert type(pickle.loads(pickle.dumps(records[3]))) is dict


def test_workers_that_are_not_forked_open_the_file_again(write):
    files = write(make_content(annotations=2000))
    register_coco_json(make_cfg(("mine", files)))
    records = DatasetCatalog.get("mine")
    text = pickle.dumps(records)
    assert len(text) < os.path.getsize(files[0]) / 5 and pickle.loads(text) == records
    assert pickle.loads(pickle.dumps(records.select(np.arange(5)))) == records[:5]

    with open(files[0], "r+") as f:
        f.write(" ")
    for use in (lambda: records[0], lambda: pickle.loads(text)):
        with pytest.raises(UserError, match="mine.json has changed since it was read: start again"):
            use()


# ---- files that are not plain, and corrected copies ----


def with_nan(text):
    return text.replace('"nobody"', "NaN", 1)


def in_lines(text):
    return json.dumps(json.loads(text), indent=2)


def with_braces(text):
    return text.replace('"nobody"', '"}, {\\"id\\": [}"')


def with_keys_twice(text):
    return '{"annotations": [{"id": 5}], "images": [], ' + text[1:]


def with_different_separators(text):
    parts = text.split('}, {"id"')
    gaps = itertools.cycle(['},{"id"', '} ,\n {"id"', '}, {"id"'])
    return parts[0] + "".join(gap + part for gap, part in zip(gaps, parts[1:]))


def with_large_numbers(text):
    return text.replace('"nobody"', "[1e999, " + "9" * 30 + "]")


CHANGES = [
    *(with_nan, in_lines, with_braces, with_keys_twice),
    *(with_different_separators, with_large_numbers),
]


@pytest.mark.parametrize("change", CHANGES)
def test_any_json_is_read_as_detectron2_reads_it(change, write):
    files = write(make_content())
    text = change(open(files[0]).read())
    open(files[0], "w").write(text)
    checked = check_coco_json(*files, with_masks=True)
    assert checked.json_file == files[0] and checked.messages == []
    assert checked.records == load_coco_json(*files, "same")
    assert pickle.loads(pickle.dumps(checked.records)) == checked.records


def test_bytes_that_are_not_utf_8_are_refused_where_nothing_reads_them(write):
    files = write(make_content())
    with open(files[0], "rb") as f:
        text = f.read()
    with open(files[0], "wb") as f:
        f.write(text.replace(b'"nobody"', b'"\xff"', 1))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        check_coco_json(*files, with_masks=False)


@pytest.mark.parametrize("side", [10, 100, 1000])
@pytest.mark.parametrize("beyond", [1, -1])
def test_reach_of_polygons_is_that_of_their_image(side, beyond, write):
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": size // 2, "width": size}
            for i, size in enumerate([10, 100, 1000])
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    limit = -side if beyond < 0 else 2 * side
    image = [10, 100, 1000].index(side)
    for i, x in enumerate([limit, limit + beyond]):
        mask = [[0, 0, x, 0, x, 5], [1, 1, 2, 1, 2, 2]]
        content["annotations"].append(
            dict(id=i + 1, image_id=image, category_id=1, iscrowd=0, area=5, bbox=[0, 0, 5, 5])
            | {"segmentation": mask}
        )
    files = write(content)
    checked = check_coco_json(*files, with_masks=True)
    assert "1 masks without their polygons that cannot be used" in checked.messages[-1][1]
    masks = [len(a["segmentation"]) for a in checked.records[image]["annotations"]]
    assert masks == [2, 1]


JUNK = [None, 0, 1, -1, 2.5, float("nan"), float("inf"), "", "7", [], [1], {}, True, 10**5, 10**30]


def spoil_at_random(content, rng):
    for _ in range(rng.randint(1, 3)):
        annotation = rng.choice(content["annotations"])
        key = rng.choice([*annotation, "ignore", "iscrowd", "keypoints"])
        if rng.random() < 0.2:
            annotation.pop(key, None)
        elif isinstance(annotation.get(key), list) and rng.random() < 0.6:
            annotation[key][rng.randrange(len(annotation[key]))] = rng.choice([*JUNK, 5, 9])
        else:
            annotation[key] = rng.choice(JUNK)


def outcome(files, with_masks):
    try:
        checked = check_coco_json(*files, with_masks=with_masks)
        return list(checked.records), checked.messages, checked.json_file
    except UserError as e:
        return str(e)


def test_quick_check_finds_all_that_the_rules_find(write, monkeypatch):
    monkeypatch.setattr("rsb_d2.data.coco_check._CHUNK", 7)  # of 40 annotations
    rng = random.Random(0)
    refused = corrected = 0
    for number in range(40):
        content = make_content(number, annotations=40)
        spoil_at_random(content, rng)
        files = write(content)
        with_masks = rng.random() < 0.5
        found = outcome(files, with_masks)
        with monkeypatch.context() as m:
            m.setattr(_Check, "_find_good", lambda self: np.zeros(len(self._file), dtype=bool))
            assert outcome(files, with_masks) == found
        refused += isinstance(found, str)
        if not isinstance(found, str):
            corrected += found[2] != files[0]
            assert found[0] == load_coco_json(found[2], files[1], f"same {number}")
    assert min(refused, corrected) > 5


def test_corrected_copy_is_written_once_and_again_if_it_is_damaged(write):
    content = make_content()
    content["annotations"][0].pop("iscrowd")
    files = write(content)
    first = check_coco_json(*files, with_masks=False)
    written = os.stat(first.json_file).st_ino
    again = check_coco_json(*files, with_masks=False)
    assert os.stat(again.json_file).st_ino == written and again.messages == first.messages
    assert pickle.loads(pickle.dumps(first.records)) == again.records
    expected = list(again.records)
    os.truncate(again.json_file, 1000)
    assert check_coco_json(*files, with_masks=False).records == expected
