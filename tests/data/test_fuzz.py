"""Random annotation files and images: a clear error or a valid batch, never anything else.

FUZZ_SEED=7 pytest -m "" tests/data/test_fuzz.py draws others.
"""

import contextlib
import copy
import io
import json
import os
import random
import warnings

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.data import register_coco_json
from rsb_d2.data.images import BadImageError, read_image
from rsb_d2.data.mapper import CheckedDatasetMapper
from tests.helpers.damaged_files import damage, jpeg, png

SEED = int(os.environ.get("FUZZ_SEED", "0"))
WIDTH, HEIGHT, NUM_CLASSES = 48, 40, 2
NAMES = ("1.jpg", "zwei ü.jpg", "3.png")


EXAMPLES = dict(
    deadline=None,
    database=None,
    derandomize=False,  # but seeded
    suppress_health_check=list(HealthCheck),
)


def check_message(error):
    message = str(error)
    assert len(message.splitlines()) == 1 and len(message) < 1500, message
    message.encode()


def check_batch(image, with_masks, mask_format):
    assert image["image"].dtype == torch.uint8 and image["image"].dim() == 3
    instances = image["instances"]
    height, width = instances.image_size
    assert image["image"].shape == (3, height, width) and min(height, width) >= 1
    boxes = instances.gt_boxes.tensor
    assert boxes.shape == (len(instances), 4) and boxes.isfinite().all() and (boxes >= 0).all()
    assert (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    classes = instances.gt_classes
    assert classes.dtype == torch.int64 and ((classes >= 0) & (classes < NUM_CLASSES)).all()
    if with_masks and len(instances):
        masks = instances.gt_masks
        if mask_format == "bitmask":
            assert masks.tensor.shape == (len(instances), height, width)
        cropped = masks.crop_and_resize(boxes, 7)  # what the mask head's loss does
        assert cropped.shape == (len(instances), 7, 7)


# ---- annotation files ----


def good_content():
    box, corners = [5, 6, 20, 15], [5, 6, 25, 6, 25, 21, 5, 21]
    rle = dict(size=[HEIGHT, WIDTH], counts=[100, 50, HEIGHT * WIDTH - 150])
    common = dict(bbox=box, area=300, iscrowd=0)
    return dict(
        images=[
            dict(id=i, file_name=name, width=WIDTH, height=HEIGHT) for i, name in enumerate(NAMES)
        ],
        categories=[dict(id=9, name="cat"), dict(id=4, name="dog")],
        annotations=[
            dict(id=1, image_id=0, category_id=9, segmentation=[corners], **common),
            dict(id=2, image_id=0, category_id=4, segmentation=[corners, corners[:6]], **common),
            dict(id=3, image_id=1, category_id=4, segmentation=rle, **common),
            dict(id=4, image_id=1, category_id=9, **{**common, "iscrowd": 1}, segmentation=rle),
            dict(id=5, image_id=2, category_id=9, keypoints=[1, 2, 2] * 3, **common),
        ],
    )


NUMBERS = st.one_of(
    st.sampled_from(
        [0, -1, 1, 4, 9, 2**31, 2**63, -(2**64), 10**400, 1e-320, 1e300, -1e308]
        + [float("nan"), float("inf"), -float("inf"), -0.0, 0.5, WIDTH, HEIGHT]
    ),
    st.integers(-100, 100),
    st.floats(-100, 100),
    st.floats(),
)
TEXTS = st.one_of(
    st.sampled_from(
        ["", ".", "..", "/", "../1.jpg", "1.jpg", "3.png/", "a\0", "\ud800", "\n", "1"]
    ),
    st.text(max_size=8),
    st.text("0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmno", max_size=20),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=8), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=10,
)
BOXES = st.lists(NUMBERS, min_size=4, max_size=4)
POLYGONS = st.lists(st.lists(NUMBERS, max_size=9), max_size=3)
RLES = st.fixed_dictionaries(
    dict(
        size=st.sampled_from([[HEIGHT, WIDTH], [WIDTH, HEIGHT], [0, 0], None]),
        counts=st.one_of(st.lists(NUMBERS, max_size=4), TEXTS),
    )
)
FLAGS = st.sampled_from([0, 1, True, 1.0])
# What an annotation can have wrong, mostly without making the whole file unusable.
FIELDS = dict(
    bbox=BOXES,
    segmentation=st.one_of(POLYGONS, RLES, VALUES),
    area=st.one_of(NUMBERS, VALUES),
    keypoints=st.one_of(BOXES, VALUES),
    iscrowd=FLAGS,
    ignore=FLAGS,
)
ANYTHING = st.one_of(NUMBERS, BOXES, POLYGONS, RLES, VALUES)


def change_field(draw, content):
    """Change one field of an annotation, or one number in its box or mask."""
    where = draw(st.sampled_from(content["annotations"]))
    key = draw(st.sampled_from(list(FIELDS)))
    value = draw(FIELDS[key])
    for _ in range(2):
        inner = where.get(key) if isinstance(where, dict) else where[key]
        if isinstance(inner, list) and inner and draw(st.booleans()):
            where, key = inner, draw(st.integers(0, len(inner) - 1))
            value = draw(NUMBERS)
    where[key] = copy.deepcopy(value)  # it may be changed in its turn


def change_anything(draw, content):
    """Change, remove or double what is found by walking down."""
    where, key = content, draw(st.sampled_from(sorted(content)))
    for _ in range(4):
        inner = where[key]
        if not isinstance(inner, (dict, list)) or not inner or draw(st.integers(0, 9)) == 7:
            break
        where = inner
        places = sorted(where, key=repr) if isinstance(where, dict) else range(len(where))
        key = draw(st.sampled_from(list(places)))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        del where[key]
    elif kind == 1 and isinstance(where, list):
        where.append(copy.deepcopy(where[key]))
    else:
        where[key] = copy.deepcopy(draw(ANYTHING))


@st.composite
def annotation_files(draw):
    content = json.loads(json.dumps(good_content()))  # with no list in two places
    for _ in range(draw(st.integers(1, 5))):
        change_field(draw, content)
    if draw(st.integers(0, 3)) == 2:
        change_anything(draw, content)
    text = json.dumps(content)
    if draw(st.integers(0, 30)) == 17:
        text = text[: draw(st.integers(0, len(text)))]
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "images").mkdir()
    for name in NAMES[:2]:
        (folder / "images" / name).write_bytes(jpeg(WIDTH, HEIGHT))
    Image.new("P", (WIDTH, HEIGHT)).save(folder / "images" / NAMES[2])
    return folder


def check_annotation_file(folder, text, with_masks, mask_format):
    """Registers it, maps each image, and evaluates the ground truth against itself."""
    cfg = get_cfg()
    add_rsb_config(cfg)
    path = folder / "fuzz.json"
    path.write_text(text)
    cfg.DATASETS.COCO_JSON = [["fuzz", str(path), str(folder / "images")]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("fuzz",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = with_masks, mask_format
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    before = [dict(DatasetCatalog.data), dict(MetadataCatalog.data)]
    try:
        try:
            register_coco_json(cfg)
        except UserError as e:
            check_message(e)
            return "refused"
        mapper = CheckedDatasetMapper(cfg, is_train=True)
        for record in DatasetCatalog.get("fuzz"):
            try:
                check_batch(mapper(record), with_masks, mask_format)
            except BadImageError as e:
                check_message(e)
        evaluate_ground_truth(MetadataCatalog.get("fuzz").json_file, with_masks)
        return "taken"
    finally:
        DatasetCatalog.data, MetadataCatalog.data = before


def evaluate_ground_truth(json_file, with_masks):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json_file)
        results = []
        for a in truth.dataset["annotations"]:
            if not a["iscrowd"]:
                result = {key: a[key] for key in ("image_id", "category_id", "bbox")}
                if with_masks:  # else pycocotools draws one from the box, however large that is
                    result["segmentation"] = truth.annToRLE(a)
                results.append({**result, "score": 0.5})
        for task in ["bbox"] + ["segm"] * with_masks:
            given_results = [{**r} for r in results]  # pycocotools adds to them
            if task == "segm":  # as Detectron2's evaluator does, for areas to be those of masks
                for result in given_results:
                    result.pop("bbox")
            evaluation = COCOeval(truth, truth.loadRes(given_results), task)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    assert np.isfinite(evaluation.stats).all()


def run_annotation_files(folder, monkeypatch, max_examples):
    monkeypatch.setenv("FVCORE_CACHE", str(folder / "cache"))
    outcomes = []

    @seed(SEED)
    @settings(max_examples=max_examples, **EXAMPLES)
    @given(annotation_files(), st.booleans(), st.sampled_from(["polygon", "bitmask"]))
    def run(text, with_masks, mask_format):
        outcomes.append(check_annotation_file(folder, text, with_masks, mask_format))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    # Enough of both kinds, or the test would say little.
    assert min(map(outcomes.count, ("refused", "taken"))) > 0.1 * len(outcomes)


def test_annotation_files(folder, monkeypatch):
    run_annotation_files(folder, monkeypatch, 25)


@pytest.mark.slow
def test_many_annotation_files(folder, monkeypatch):
    run_annotation_files(folder, monkeypatch, 3000)


# ---- images ----


def whole_images():
    picture = Image.open(io.BytesIO(jpeg(WIDTH, HEIGHT)))
    exif = Image.Exif()
    exif[0x0112] = 3
    exif[0x010E] = "a description"
    kinds = {
        "JPEG": (picture, dict(exif=exif)),
        "JPEG, progressive": (picture, dict(progressive=True)),
        "JPEG, grey": (picture.convert("L"), {}),
        "JPEG, CMYK": (picture.convert("CMYK"), {}),
        "PNG": (picture, dict(exif=exif)),
        "PNG, palette": (picture.quantize(16), dict(transparency=3)),
        "PNG, 1 bit": (picture.convert("1"), {}),
        "TIFF": (picture, dict(compression="tiff_lzw", exif=exif)),
        "TIFF, 16 bit": (Image.fromarray(np.ones((HEIGHT, WIDTH), dtype=np.uint16)), {}),
        "GIF": (picture.quantize(16), {}),
        "BMP": (picture, {}),
        "WEBP": (picture, {}),
    }
    for kind, (image, options) in kinds.items():
        f = io.BytesIO()
        image.save(f, kind.partition(",")[0], **options)
        yield f.getvalue()
    yield png(WIDTH, HEIGHT, depth=16, color_type=0, pixels=bytes(HEIGHT * (1 + 2 * WIDTH)))


def run_images(tmp_path, number):
    cfg = get_cfg()
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TRAIN = "RGB", (32,)
    mapper = CheckedDatasetMapper(cfg, is_train=True)
    whole = list(whole_images())
    path = tmp_path / "damaged"
    annotation = dict(bbox=[5, 6, 20, 15], bbox_mode=1, category_id=1, iscrowd=0)
    record = dict(
        file_name=str(path), width=WIDTH, height=HEIGHT, image_id=1, annotations=[annotation]
    )
    bad = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it reads all the same
        for i in range(number):
            rng = random.Random(1_000_003 * SEED + i)
            # JPEGs are every second one.
            content = whole[rng.randrange(4) if rng.random() < 0.5 else rng.randrange(len(whole))]
            path.write_bytes(damage(content, rng))
            seed_all_rng(i)
            try:
                image = mapper(record)
                check_batch(image, with_masks=False, mask_format="polygon")
                assert len(image["instances"]) == 1
                assert read_image(str(path), "RGB").shape == (HEIGHT, WIDTH, 3)
            except BadImageError as e:
                check_message(e)
                assert e.path == str(path)
                bad += 1
    assert 0.2 * number < bad < 0.9 * number


def test_damaged_images(tmp_path):
    run_images(tmp_path, 300)


@pytest.mark.slow
def test_many_damaged_images(tmp_path):
    run_images(tmp_path, 15_000)
