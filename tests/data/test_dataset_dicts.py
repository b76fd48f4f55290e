"""Dataset dicts of scripts, in every type that their fields have: stock's values, or a line."""

import contextlib
import functools
import io
import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import COCOEvaluator as StockEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from rsb_d2 import Trainer, UserError
from rsb_d2.config.loading import load_config
from rsb_d2.evaluation import convert_test_sets
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.data.coco_files import box_polygon
from tests.helpers.paths import CONFIGS

WIDTH, HEIGHT = 96, 64
MASKS = ("MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "bitmask")
KEYPOINTS = [
    *("MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "3"),
    *("TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.05, 0.1]"),
]
# Of the image files' size, so that a resize does not round.
SIZES = [
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "INPUT.RANDOM_FLIP", "none"),
    *("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"),
    *("DATASETS.COCO_JSON", "[]", "SEED", "1"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "2"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(4):
        Image.new("RGB", (WIDTH, HEIGHT), (60 * i, 90, 30)).save(folder / f"{i}.png")
        Image.new("L", (WIDTH, HEIGHT), i).save(folder / f"{i}_labels.png")
    return folder


@pytest.fixture(autouse=True)
def catalogs():
    with catalogs_kept():
        yield


def make_records(folder):
    """What every script registers: plain lists, integers and strings."""
    records = []
    for i in range(4):
        annotations = []
        for k in range(2):
            x, y, w, h = 5 + 3 * i + 20 * k, 4 + 2 * i, 30, 25
            annotations.append(
                dict(
                    bbox=[float(x), float(y), float(x + w), float(y + h)],
                    bbox_mode=BoxMode.XYXY_ABS,
                    category_id=k,
                    iscrowd=0,
                    segmentation=[box_polygon(*map(float, (x, y, w, h)))],
                    keypoints=[x + 2.5, y + 2.5, 2, x + 20.5, y + 4.5, 2, x + 10.5, y + 20.5, 1],
                )
            )
        record = dict(file_name=str(folder / f"{i}.png"), height=HEIGHT, width=WIDTH, image_id=i)
        records.append(dict(record, annotations=annotations))
    return records


def register(name, records, **metadata):
    DatasetCatalog.register(name, records if callable(records) else lambda: records)
    names = dict(keypoint_names=["left", "right", "top"], keypoint_flip_map=[("left", "right")])
    given = {"thing_classes": ["cat", "dog"], "evaluator_type": "coco", **names, **metadata}
    MetadataCatalog.get(name).set(**{k: v for k, v in given.items() if v is not None})
    return name


def make_cfg(name, output, *opts):
    cfg = load_config(str(CONFIGS / "frcnn_rsb_sample.yaml"), [*SIZES, *opts])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
    cfg.OUTPUT_DIR = str(output)
    return cfg


def targets(mapped):
    """What a model is trained on in an image."""
    found = {"image": mapped["image"].float().mean().item()}
    instances = mapped["instances"]
    for key, value in instances.get_fields().items():
        value = getattr(value, "tensor", value)
        found[key] = value.tolist()
    return found


def detections(record, cfg):
    """Detections near the objects of an image, some of the wrong class."""
    i = int(Path(str(record["file_name"])).stem)
    rng = np.random.default_rng(i)
    corners = [[5 + 3 * i + 20 * k, 4 + 2 * i, 35 + 3 * i + 20 * k, 29 + 2 * i] for k in range(2)]
    boxes = torch.as_tensor(np.array(corners) + rng.normal(0, 2, (2, 4)), dtype=torch.float32)
    found = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(boxes))
    found.scores = torch.as_tensor(rng.uniform(0.1, 1, 2))
    found.pred_classes = torch.tensor([0, 1] if i else [1, 0])
    if cfg.MODEL.MASK_ON:
        found.pred_masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(found.pred_masks, boxes.round().int().tolist()):
            mask[y0:y1, x0:x1] = True
    if cfg.MODEL.KEYPOINT_ON:
        centers = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
        offsets = torch.tensor([[-10.0, -8.0], [5.0, -7.0], [0.0, 6.0]])
        found.pred_keypoints = torch.cat([centers + offsets, torch.ones(2, 3, 1)], dim=2)
    return {"instances": found}


def figures(evaluator, records, cfg):
    evaluator.reset()
    for record in records:
        evaluator.process([record], [detections(record, cfg)])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()


@pytest.fixture(scope="module")
def stock_values(folder, tmp_path_factory):
    """A function: stock Detectron2's on the plain records, what is trained on and the figures."""

    @functools.cache
    def values(*opts):
        with catalogs_kept():
            return compute_stock_values(folder, tmp_path_factory.mktemp("stock"), *opts)

    return values


def compute_stock_values(folder, tmp_path, *opts):
    cfg = make_cfg(register("plain", make_records(folder)), tmp_path, *opts)
    mapper = DatasetMapper(cfg, is_train=True)
    trained = {i: targets(mapper(r)) for i, r in enumerate(make_records(folder))}
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    evaluator = StockEvaluator("plain", output_dir=str(tmp_path), kpt_oks_sigmas=sigmas)
    return trained, figures(evaluator, make_records(folder), cfg)


def our_values(cfg):
    convert_test_sets(cfg)
    batches = iter(Trainer.build_train_loader(cfg))
    images = [image for _ in range(4) for image in next(batches)]
    trained = {int(Path(str(image["file_name"])).stem): targets(image) for image in images}
    name = cfg.DATASETS.TEST[0]
    loaded = [image for batch in Trainer.build_test_loader(cfg, name) for image in batch]
    return trained, figures(Trainer.build_evaluator(cfg, name), loaded, cfg)


def each(change):
    return lambda records: [change(i, record) for i, record in enumerate(records)] and records


def record_field(key, convert):
    return each(lambda i, record: record.update({key: convert(i, record.get(key))}))


def field(key, convert):
    def change(i, record):
        for annotation in record["annotations"]:
            annotation[key] = convert(annotation[key])

    return each(change)


def without(*keys):
    return each(lambda i, record: [record.pop(key) for key in keys])


def boxes(mode, convert):
    def change(i, record):
        for a in record["annotations"]:
            x0, y0, x1, y1 = a["bbox"]
            a.update(bbox=convert([x0, y0, x1 - x0, y1 - y0]), bbox_mode=mode)

    return each(change)


def in_pixels(polygons):
    x0, y0, *_, x1, y1 = (*polygons[0][:2], *polygons[0][4:6])
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[int(y0) : int(y1), int(x0) : int(x1)] = 1
    return mask


def as_rle(polygons, of_text=False):
    rle = mask_util.encode(in_pixels(polygons))
    return {**rle, "counts": rle["counts"].decode()} if of_text else rle


def uncompressed(polygons):
    flat = in_pixels(polygons).ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts}


class Dataset(torch.utils.data.Dataset):
    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


class Indexed:
    """A sequence without ``__iter__``, by Python's oldest protocol."""

    __init__, __len__, __getitem__ = Dataset.__init__, Dataset.__len__, Dataset.__getitem__


SAME = {
    "plain": list,
    "image_id of text": record_field("image_id", lambda i, _: f"image {i}"),
    "image_id of NumPy": record_field("image_id", lambda i, _: np.int64(i)),
    "image_id of torch": record_field("image_id", lambda i, _: torch.tensor(i)),
    "image_id negative": record_field("image_id", lambda i, _: -i - 1),
    "image_id beyond float's precision": record_field("image_id", lambda i, _: 2**60 + i),
    "image_id missing": without("image_id"),
    "file_name a path": record_field("file_name", lambda i, name: Path(name)),
    "size of NumPy": each(lambda i, r: r.update(height=np.int32(HEIGHT), width=np.int64(WIDTH))),
    "size missing": without("height", "width"),
    "size None": each(lambda i, r: r.update(height=None, width=None)),
    "annotations an array": record_field("annotations", lambda i, a: np.array(a)),
    "bbox a tuple": field("bbox", tuple),
    "bbox an array": field("bbox", np.array),
    "bbox an integer array": field("bbox", lambda b: np.array(b, dtype=np.uint8)),
    "bbox of NumPy's numbers": field("bbox", lambda b: [np.float32(v) for v in b]),
    "bbox a tensor": field("bbox", torch.tensor),
    "XYWH": boxes(BoxMode.XYWH_ABS, list),
    "XYWH by NumPy's number": boxes(np.int64(1), list),
    "class of NumPy": field("category_id", np.uint8),
    "class a fraction": field("category_id", float),
    "class a tensor": field("category_id", torch.tensor),
    "iscrowd a boolean": field("iscrowd", bool),
    "iscrowd None": field("iscrowd", lambda _: None),
    "own keys": each(lambda i, r: r.update(camera="left", note=None)),
    "labels in a path": each(
        lambda i, r: r.update(sem_seg_file_name=Path(r["file_name"]).with_name(f"{i}_labels.png"))
    ),
    "a tuple of dicts": tuple,
    "an array of dicts": lambda records: np.array(records, dtype=object),
    "a torch dataset": Dataset,
    "a part of a torch dataset": lambda r: torch.utils.data.Subset(Dataset(r), range(len(r))),
    "indexed": Indexed,
}
SAME_MASKS = {
    "polygons": list,
    "polygon arrays": field("segmentation", lambda s: [np.array(p) for p in s]),
    "polygon tuples": field("segmentation", lambda s: [tuple(p) for p in s]),
    "points in rows": field("segmentation", lambda s: [np.array(p).reshape(-1, 2) for p in s]),
    "points in lists": field("segmentation", lambda s: [list(zip(p[::2], p[1::2])) for p in s]),
    "RLE of bytes": field("segmentation", as_rle),
    "RLE with a size in an array": field(
        "segmentation", lambda s: {**as_rle(s), "size": np.array([HEIGHT, WIDTH])}
    ),
    "RLE uncompressed": field("segmentation", uncompressed),
    "pixels": field("segmentation", in_pixels),
    "pixels in a tensor": field("segmentation", lambda s: torch.from_numpy(in_pixels(s).copy())),
}
SAME_KEYPOINTS = {
    "plain": list,
    "array": field("keypoints", np.array),
    "array of rows": field("keypoints", lambda k: np.array(k, np.float32).reshape(-1, 3)),
    "tuple": field("keypoints", tuple),
    "list of rows": field("keypoints", lambda k: [k[i : i + 3] for i in range(0, 9, 3)]),
}


@pytest.mark.parametrize("kind", SAME)
def test_boxes_have_the_values_of_stock(kind, folder, tmp_path, stock_values):
    expected = stock_values()
    records = SAME[kind](make_records(folder))
    cfg = make_cfg(register("mine", records), tmp_path / "ours")
    trained, found = our_values(cfg)
    for image in trained.values():
        image.pop("sem_seg", None)
    assert trained == {i: expected[0][i] for i in trained} and len(trained) > 1
    np.testing.assert_equal(found, expected[1])
    assert 20 < found["bbox"]["AP"] < 90


@pytest.mark.parametrize("kind", SAME_MASKS)
def test_masks_have_the_values_of_stock(kind, folder, tmp_path, stock_values):
    expected = stock_values(*MASKS)
    records = SAME_MASKS[kind](make_records(folder))
    trained, found = our_values(make_cfg(register("mine", records), tmp_path / "ours", *MASKS))
    assert trained == {i: expected[0][i] for i in trained}
    np.testing.assert_equal(found["segm"], expected[1]["segm"])
    assert 20 < found["segm"]["AP"] < 90


@pytest.mark.parametrize("kind", SAME_KEYPOINTS)
def test_keypoints_have_the_values_of_stock(kind, folder, tmp_path, stock_values):
    expected = stock_values(*KEYPOINTS)
    records = SAME_KEYPOINTS[kind](make_records(folder))
    before = repr(records)
    name = register("mine", records)
    trained, found = our_values(make_cfg(name, tmp_path / "ours", *KEYPOINTS))
    assert trained == {i: expected[0][i] for i in trained}
    np.testing.assert_equal(found["keypoints"], expected[1]["keypoints"])
    assert 10 < found["keypoints"]["AP"] < 90
    assert repr(records) == before  # which stock's conversion changes


@pytest.mark.parametrize("missing", [lambda r: r.pop("annotations"), {"annotations": None}])
@pytest.mark.parametrize("place", [0, -1])
def test_an_image_without_annotations_has_no_objects(missing, place, folder, tmp_path):
    records = make_records(folder)
    missing(records[place]) if callable(missing) else records[place].update(missing)
    cfg = make_cfg(register("mine", records), tmp_path)
    assert len(our_values(cfg)[0]) == 3
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    trained, _ = our_values(cfg)
    assert trained[place % 4]["gt_boxes"] == [] and len(trained[1]["gt_boxes"]) == 2


def test_ids_of_categories(folder, tmp_path, stock_values):
    """Those of the metadata go into the file and into the results, of any type."""
    expected = stock_values()[1]
    for kind in (int, str, np.int64):
        ids = {kind(7): 0, kind(3): 1}
        name = register(kind.__name__, make_records(folder), thing_dataset_id_to_contiguous_id=ids)
        found = our_values(make_cfg(name, tmp_path / name))[1]
        np.testing.assert_equal(found, expected)
        results = json.loads(
            (tmp_path / name / "inference/coco_instances_results.json").read_text()
        )
        assert {result["category_id"] for result in results} == {3, 7}


# ---- what is refused ----


def first_object(**changes):
    return lambda records: records[0]["annotations"][0].update(changes) or records


REFUSED = {
    "image_id of several images": (record_field("image_id", lambda i, _: i // 2), "image_id 0 is"),
    "image_id of other types": (record_field("image_id", lambda i, _: i or "a"), "some image_id"),
    "image_id a tuple": (record_field("image_id", lambda i, _: (i,)), r"image_id \(0,\) is"),
    "rotated": (first_object(bbox=[9, 9, 9, 9, 9], bbox_mode=4), "0.png has a rotated box"),
    "polygon of two points": (first_object(segmentation=[[1, 2, 3, 4]]), "0.png has a polygon"),
    "class without a name": (first_object(category_id=2), "0.png has an object of class 2"),
    "class below 0": (first_object(category_id=-1), "0.png has an object of class -1"),
    "generator": (lambda records: (r for r in records), "returns a generator; return a list"),
    "None": (lambda records: None, "returns a NoneType; return a list"),
    "dict": (lambda records: dict(enumerate(records)), "returns a dict; return a list"),
    "empty": (lambda records: [], "mine is empty"),
    "paths": (lambda records: [r["file_name"] for r in records], "item 0 is a str, not a dict"),
    "function in a dict": (each(lambda i, r: r.update(f=lambda: 1)), "cannot be pickled"),
    "no classes": (list, "has no thing_classes", dict(thing_classes=None)),
    "classes of numbers": (list, r"thing_classes are \[1, 2\]", dict(thing_classes=[1, 2])),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_mistakes_are_a_line_before_training(kind, folder, tmp_path):
    change, says, *metadata = REFUSED[kind]
    records = change(make_records(folder))
    name = register("mine", lambda: records, **(metadata[0] if metadata else {}))
    with pytest.raises(UserError, match=says) as e:
        our_values(make_cfg(name, tmp_path))
    assert "mine" in str(e.value) or "DATASETS.TRAIN" in str(e.value)
    assert len(str(e.value).splitlines()) == 1


UNUSABLE = {
    "relative box": (dict(bbox_mode=BoxMode.XYXY_REL, bbox=[0.1, 0.1, 0.5, 0.5]), "XYXY_REL"),
    "no mode": (dict(bbox_mode=None), "bbox_mode None"),
    "mode by name": (dict(bbox_mode="XYXY_ABS"), "bbox_mode 'XYXY_ABS'"),
    "box of texts": (dict(bbox=["1", "2", "3", "4"]), r"the box \['1'"),
    "several boxes": (dict(bbox=np.ones((1, 4))), "the box"),
    "box of five": (dict(bbox=[1, 2, 30, 40, 0]), "not of four finite"),
    "no class": (dict(category_id=None), "class None"),
    "class a fraction": (dict(category_id=0.5), "class 0.5"),
    "keypoints of another number": (dict(keypoints=[1, 2, 2]), "not the 3 x 3"),
    "keypoints of texts": (dict(keypoints=list("abc")), "keypoints"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_one_bad_object_is_one_skipped_image(kind, folder, tmp_path, caplog):
    changes, says = UNUSABLE[kind]
    records = first_object(**changes)(make_records(folder))
    loader = Trainer.build_train_loader(make_cfg(register("mine", records), tmp_path, *KEYPOINTS))
    batches = iter(loader)
    seen = {image["image_id"] for _ in range(8) for image in next(batches)}
    assert seen == {1, 2, 3}
    (reason,) = loader.bad_images.reasons.values()
    assert "object 0" in reason and says.replace("\\", "") in reason


def test_classes_that_differ_between_data_sets(folder, tmp_path):
    register("one", make_records(folder))
    register("other", make_records(folder), thing_classes=["x", "y"])
    cfg = make_cfg("one", tmp_path)
    cfg.DATASETS.TRAIN = ("one", "other")
    with pytest.raises(UserError, match="one and other must have the same thing_classes"):
        Trainer.build_train_loader(cfg)


# ---- a whole training ----

TINY = [
    *("MODEL.TIMM.NAME", "resnet10t", "MODEL.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1"),
    *("TEST.EVAL_PERIOD", "1", "TEST.VAL_LOSS", "True", "SOLVER.STEPS", "()"),
]


def test_a_script_trains_and_evaluates(folder, tmp_path):
    records = SAME["image_id of text"](make_records(folder))
    name = register("mine", SAME["size missing"](records))
    cfg = make_cfg(name, tmp_path, *TINY)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert all("bbox/AP" in line for line in lines if "val_total_loss" in line)
    assert lines[-1]["val_total_loss"] > 0
