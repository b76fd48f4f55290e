"""Reading one image, and the mapper: right pixels, or one error that names the file."""

import io
import pickle
import re
import struct

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image, PngImagePlugin

from rsb_d2 import Trainer, UserError
from rsb_d2.data import register_coco_json
from rsb_d2.data.images import BadImageError, image_size, read_image
from rsb_d2.data.mapper import CheckedDatasetMapper
from tests.helpers.damaged_files import jpeg, png
from tests.helpers.data.bad_input import HEIGHT, IMAGES, WIDTH, make_little_config

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
DEEP = RNG.integers(0, 2**16, (7, 5), dtype=np.uint16)
PALETTE = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
INDEX = RNG.integers(0, 16, (7, 5), dtype=np.uint8)


def save(image, kind, **options):
    f = io.BytesIO()
    image.save(f, kind, **options)
    return f.getvalue()


def palette_image():
    image = Image.fromarray(INDEX)
    image.putpalette(PALETTE.tobytes())
    return image


def with_alpha(mode, colours):
    alpha = np.full((7, 5, 1), 9, dtype=np.uint8)
    return Image.fromarray(np.concatenate([colours.reshape(7, 5, -1), alpha], axis=2), mode)


def deep_png(values, color_type):
    rows = values.astype(">u2").reshape(7, -1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    return png(5, 7, depth=16, color_type=color_type, pixels=pixels)


DEEP_RGB = RNG.integers(0, 2**16, (7, 5, 3), dtype=np.uint16)


def grey(values):
    return np.repeat(np.asarray(values, dtype=np.uint8).reshape(7, 5, 1), 3, axis=2)


# What each file holds, and its RGB pixels, from the arrays that it is made of.
UNUSUAL = {
    "rgb": (save(Image.fromarray(RGB), "PNG"), RGB),
    "grey": (save(Image.fromarray(GREY), "PNG"), grey(GREY)),
    "alpha": (save(with_alpha("RGBA", RGB), "PNG"), RGB),
    "1 bit": (save(Image.fromarray(GREY > 99), "PNG"), grey(255 * (GREY > 99))),
    "palette": (save(palette_image(), "PNG"), PALETTE[INDEX]),
    "palette, one transparent": (save(palette_image(), "PNG", transparency=3), PALETTE[INDEX]),
    "palette, transparencies": (
        save(palette_image(), "PNG", transparency=bytes(range(16))),
        PALETTE[INDEX],
    ),
    "16-bit grey PNG": (deep_png(DEEP, 0), grey(DEEP >> 8)),
    "16-bit grey TIFF": (save(Image.fromarray(DEEP), "TIFF"), grey(DEEP >> 8)),
    "16-bit grey PGM": (b"P5 5 7 65535\n" + DEEP.astype(">u2").tobytes(), grey(DEEP >> 8)),
    "16-bit RGB PNG": (deep_png(DEEP_RGB, 2), DEEP_RGB >> 8),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_pixels_of_unusual_images(kind, tmp_path, recwarn):
    content, expected = UNUSUAL[kind]
    path = tmp_path / "a picture of ümlauts.img"
    path.write_bytes(content)
    image = read_image(str(path), "RGB", expected.shape[1::-1])
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(read_image(str(path), "BGR"), expected[:, :, ::-1])
    assert not recwarn.list


def test_cmyk(tmp_path):
    cmyk = RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8)
    path = str(tmp_path / "cmyk")
    Image.fromarray(cmyk, "CMYK").save(path, "TIFF")
    without = 255.0 - cmyk  # ink, from 0 to 1, takes this share of the light away
    expected = without[:, :, :3] * without[:, :, 3:] / 255
    assert np.abs(read_image(path, "RGB") - expected).max() <= 1
    # In a JPEG, where Adobe's are stored inverted; of one colour, as it is lossy.
    Image.new("CMYK", (16, 8), (0, 255, 128, 64)).save(path, "JPEG", quality=100)
    assert np.abs(read_image(path, "RGB") - np.array([191, 0, 95.0])).max() <= 3


# The upright picture from the stored one, as the EXIF standard words it: e.g. 6, "the 0th row is
# the visual right-hand side, the 0th column the visual top".
UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: x[::-1, ::-1],
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_exif_orientation_is_applied_once(kind, tmp_path):
    path = str(tmp_path / "turned")
    for orientation, turn in UPRIGHT.items():
        stored = Image.fromarray(GREY).resize((40, 24), Image.Resampling.NEAREST)
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(path, kind, exif=exif)
        expected = turn(np.repeat(np.asarray(stored)[:, :, None], 3, axis=2))
        image = read_image(path, "RGB", expected.shape[1::-1])
        assert image.shape == expected.shape
        assert np.abs(image - expected.astype(float)).max() <= (30 if kind == "JPEG" else 0)


def test_damaged_exif_does_not_cost_the_image(tmp_path):
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff broken"
    (tmp_path / "a.jpg").write_bytes(jpeg(exif=exif))
    assert read_image(str(tmp_path / "a.jpg"), "RGB").shape == (80, 100, 3)


def signed_tiff():
    """A gray TIFF of 100 x 80 pixels with signed integers of 16 bits, which Pillow does not write.

    Its tags are of TIFF 6.0: width, height, bits, compression, photometric interpretation, offset
    and rows of the strip, bytes, sample format.
    """
    tags = {256: 100, 257: 80, 258: 16, 259: 1, 262: 1, 273: 8, 278: 80, 279: 16000, 339: 2}
    content = struct.pack("<2sHI", b"II", 42, 8 + 16000) + bytes(16000)
    content += struct.pack("<H", len(tags))
    return content + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags.items()) + bytes(4)


def bad_files():
    floating = save(Image.fromarray(np.ones((80, 100), dtype=np.float32)), "TIFF")
    integers = save(Image.fromarray(np.ones((80, 100), dtype=np.int32)), "TIFF")
    return {
        "missing": (None, "there is no such file"),
        "empty": (b"", "the file is empty"),
        "text": (b"this is no image", "it is not an image, or of a kind that Pillow does not read"),
        "cut short": (jpeg()[:1500], "it is damaged .*truncated"),
        "cut short PNG": (png(100, 80, pixels=b"\0" * 1000), "it is damaged"),
        "bomb": (png(20000, 20000, pixels=b"\0"), "too large to be decoded .*400000000 pixels"),
        "large": (png(12000, 12000), "12000 x 12000 pixels, the annotation file says 100 x 80"),
        "other size": (jpeg(100, 79), "100 x 79 pixels, the annotation file says 100 x 80"),
        "signed 16-bit": (signed_tiff(), "it has signed 16-bit integer pixels"),
        "32-bit integer": (integers, "it has 32-bit integer pixels"),
        "32-bit floating-point": (floating, "floating-point pixels.*8 bits a channel"),
    }


@pytest.mark.parametrize("kind", bad_files())
def test_errors_of_images(kind, tmp_path):
    content, message = bad_files()[kind]
    path = tmp_path / "a: b.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadImageError, match=message) as e:
        read_image(str(path), "RGB", (100, 80))
    error = e.value
    assert isinstance(error, UserError) and error.path == str(path)
    assert str(error) == f"cannot use the image {path}: {error.reason}" and len(error.reason) < 200
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.reason, str(again)) == (error.path, error.reason, str(error))


def test_other_paths(tmp_path):
    for path, message in {
        str(tmp_path): "Is a directory",
        "a\0b.jpg": "a.x00b.jpg.*null",
        "no\nsuch\ud800.jpg": r"no\\nsuch\\ud800.jpg",
    }.items():
        with pytest.raises(BadImageError, match=message) as e:
            read_image(path, "RGB")
        assert len(str(e.value).splitlines()) == 1


def test_size_before_the_exif_rotation_is_explained(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg(100, 80, exif=exif))
    with pytest.raises(BadImageError, match="80 x 100 .*says 100 x 80 .*EXIF orientation turns it"):
        read_image(str(path), "RGB", (100, 80))


# ---- the mapper ----


def make_cfg():
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (60, 70), 60
    cfg.MODEL.MASK_ON = True
    return cfg


BOX = [10.0, 10.0, 30.0, 20.0]
POLYGON = [10.0, 10.0, 40.0, 10.0, 40.0, 30.0, 10.0, 30.0]


def make_record(path, **changes):
    annotation = dict(
        bbox=BOX, bbox_mode=BoxMode.XYWH_ABS, category_id=1, segmentation=[POLYGON], iscrowd=0
    )
    annotation.update(changes)
    crowd = {**annotation, "iscrowd": 1, "bbox": [float("nan")] * 4}  # never looked at
    return dict(
        file_name=str(path), width=100, height=80, image_id=3, annotations=[annotation, crowd]
    )


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(jpeg())
    return path


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_mapper_equals_detectron2s(is_train, mask_format, picture, tmp_path):
    labels = np.random.default_rng(0).integers(0, 50, (80, 100), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    cfg = make_cfg()
    cfg.INPUT.MASK_FORMAT = mask_format
    record = {**make_record(picture), "sem_seg_file_name": str(tmp_path / "labels.png")}
    before = repr(record)  # NaN equals nothing
    for seed in range(8):
        results = []
        for mapper in (DatasetMapper(cfg, is_train), CheckedDatasetMapper(cfg, is_train)):
            seed_all_rng(seed)
            results.append(mapper(record))
        expected, result = results
        assert result.keys() == expected.keys() and "annotations" not in result
        assert torch.equal(result["image"], expected["image"])
        if is_train:
            assert torch.equal(result["sem_seg"], expected["sem_seg"])
            fields, expected_fields = (r["instances"].get_fields() for r in results)
            assert fields.keys() == expected_fields.keys()
            assert torch.equal(fields["gt_boxes"].tensor, expected_fields["gt_boxes"].tensor)
            masks, expected_masks = fields["gt_masks"], expected_fields["gt_masks"]
            if mask_format == "bitmask":
                assert torch.equal(masks.tensor, expected_masks.tensor)
            else:
                assert np.array_equal(masks.polygons, expected_masks.polygons)
    assert repr(record) == before


MASK = np.zeros((80, 100), dtype=np.uint8, order="F")
MASK[10:30, 10:40] = 1
RLE = mask_util.encode(MASK)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(bbox=[0, 0, float("inf"), 5]), "inf.*four finite"),
        (dict(category_id=-1), "the class -1"),
        (dict(segmentation=[[1.0, 1.0, 5.0, 5.0]]), "polygon that is not of three points"),
        (dict(segmentation=[[1, 1, 5, 5, 9, 1e9]]), "polygon that is not of three"),
        (dict(segmentation=[]), "no mask"),
        (dict(segmentation=RLE), "mask in RLE, write INPUT.MASK_FORMAT bitmask"),
    ],
)
def test_annotations_that_cannot_be_used(changes, message, picture):
    with pytest.raises(BadImageError, match="object 0 of its annotations has .*" + message) as e:
        CheckedDatasetMapper(make_cfg(), True)(make_record(picture, **changes))
    assert e.value.path == str(picture) and len(str(e.value).splitlines()) == 1
    # In evaluation nobody reads them.
    CheckedDatasetMapper(make_cfg(), False)(make_record(picture, **changes))


def test_rle_of_another_size(picture):
    cfg = make_cfg()
    cfg.INPUT.MASK_FORMAT = "bitmask"
    mapper = CheckedDatasetMapper(cfg, True)
    masks = mapper(make_record(picture, segmentation=RLE))["instances"].gt_masks
    assert masks.tensor.shape[0] == 1 and masks.tensor.sum() > 100
    for rle in ({**RLE, "size": [100, 80]}, {**RLE, "counts": RLE["counts"][:-1]}):
        with pytest.raises(BadImageError, match=r"RLE mask that does not fit \[80, 100\]"):
            mapper(make_record(picture, segmentation=rle))


def test_a_very_narrow_image(tmp_path):
    path = tmp_path / "thread.png"
    path.write_bytes(save(Image.new("RGB", (5000, 1)), "PNG"))
    record = dict(file_name=str(path), width=5000, height=1, image_id=1)
    with pytest.raises(BadImageError, match=r"too long and narrow .*5000 x 1"):
        CheckedDatasetMapper(make_cfg(), False)(record)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_a_worker_arrives_as_the_same_line(num_workers, tmp_path):
    (tmp_path / "cut: short.jpg").write_bytes(jpeg()[:1500])
    (tmp_path / "whole.jpg").write_bytes(jpeg())
    records = [
        dict(file_name=str(tmp_path / name), width=100, height=80, image_id=i)
        for i, name in enumerate(["whole.jpg", "cut: short.jpg", "whole.jpg"])
    ]
    mapper = CheckedDatasetMapper(make_cfg(), False)
    with pytest.raises(BadImageError) as expected:
        mapper(records[1])
    loader = build_detection_test_loader(records, mapper=mapper, num_workers=num_workers)
    batches = iter(loader)
    with pytest.raises(BadImageError) as e:
        list(batches)
    for worker in getattr(batches, "_workers", ()):
        worker.terminate()  # torch would wait for each, 5 seconds, when the loader is collected
    assert str(e.value) == str(expected.value) and "truncated" in e.value.reason
    assert e.value.path == records[1]["file_name"]


@pytest.mark.parametrize("has_exif", [False, True])
def test_the_size_of_a_png_is_read_from_its_header(tmp_path, monkeypatch, has_exif):
    exif = Image.Exif()
    exif[274] = 6  # on its side
    path = tmp_path / "a.png"
    Image.new("RGB", (60, 40)).save(path, exif=exif if has_exif else b"")
    assert image_size(str(path)) == read_image(str(path), "RGB").shape[1::-1]

    def load(image):
        raise AssertionError("the pixels are decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    if not has_exif:
        assert image_size(str(path)) == (60, 40)


# ---- from the data set to the batches ----


def write_turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path.write_bytes(jpeg(WIDTH, HEIGHT, exif=exif))


BAD_IMAGES = {
    "missing since": (lambda path: path.unlink(), "there is no such file"),
    "truncated": (lambda path: path.write_bytes(jpeg(WIDTH, HEIGHT)[:1200]), "truncated"),
    "of another size": (lambda path: path.write_bytes(jpeg(96, 63)), "96 x 63 .*says 96 x 64"),
    "turned, and annotated as it is not": (write_turned, "64 x 96 pixels.*EXIF orientation"),
    "a folder": (lambda path: path.unlink() or path.mkdir(), "Is a directory"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_training_skips_a_bad_image_and_evaluation_stops(kind, little_data, caplog):
    make, says = BAD_IMAGES[kind]
    cfg = make_little_config()
    register_coco_json(cfg)  # which looks for the files
    for split in ("train", "val"):
        make(little_data / split / IMAGES[2])
    batches = iter(Trainer.build_train_loader(cfg))
    seen = {image["image_id"] for _ in range(6) for image in next(batches)}
    assert seen == {1, 2}  # the fourth has no objects
    messages = [r.getMessage() for r in caplog.records if "bad image" in r.getMessage()]
    (message,) = messages  # once
    assert re.search(f"train/{IMAGES[2]}: .*{says}", message)
    with pytest.raises(BadImageError, match=f"val/{IMAGES[2]}: .*{says}") as e:
        list(Trainer.build_test_loader(cfg, "mine_val"))
    assert "\n" not in str(e.value)
