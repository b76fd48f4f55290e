"""SAHI on a package and on a model in memory finds what this project finds."""

import numpy as np
import pytest

from tests.helpers.seeded_run import CLASSES

AutoDetectionModel = pytest.importorskip("sahi").AutoDetectionModel
Detectron2DetectionModel = pytest.importorskip("sahi.models.detectron2").Detectron2DetectionModel
sahi_predict = pytest.importorskip("sahi.predict")
get_prediction = sahi_predict.get_prediction
get_sliced_prediction = sahi_predict.get_sliced_prediction

KINDS = ["package", "in memory"]


def sahi_model(kind, served, **options):
    mapping = {str(i): name for i, name in enumerate(served.names)}
    options = {"confidence_threshold": 0.3, "device": "cpu", "category_mapping": mapping, **options}
    if kind == "in memory":
        model = Detectron2DetectionModel(load_at_init=False, **options)
        model.model = served.in_memory
        return model
    return AutoDetectionModel.from_pretrained(
        model_type="detectron2",
        config_path=str(served.folder / "config.yaml"),
        model_path=str(served.folder / "model_final.pth"),
        **options,
    )


def found_by(result):
    """Boxes, scores and names, best first."""
    objects = sorted(result.object_prediction_list, key=lambda o: -o.score.value)
    boxes = np.array([o.bbox.to_xyxy() for o in objects]).reshape(-1, 4)
    return boxes, np.array([o.score.value for o in objects]), [o.category.name for o in objects]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image(kind, served, image_file, rgb):
    boxes, scores, names = found_by(get_prediction(str(image_file), sahi_model(kind, served)))
    expected = served.detect(rgb)
    if expected.has("pred_masks"):  # SAHI leaves out what has no pixel, and boxes are the masks'
        expected = expected[[len(o) > 0 for o in map(outline, expected.pred_masks)]]
    assert len(scores) == len(expected) >= 10
    assert np.abs(scores - expected.scores.numpy()).max() < 1e-5
    assert sorted(names) == sorted(CLASSES[i] for i in expected.pred_classes)
    if not expected.has("pred_masks"):
        assert np.abs(boxes - expected.pred_boxes.tensor.numpy()).max() < 1e-3


def outline(mask):
    from sahi.utils.cv import get_bbox_from_bool_mask, get_coco_segmentation_from_bool_mask

    outlines = get_coco_segmentation_from_bool_mask(mask.numpy())
    return outlines if get_bbox_from_bool_mask(mask.numpy()) is not None else []


def test_slices(served, image_file, rgb):
    """Without merging: what this project finds in each slice, at its place in the image."""
    options = {
        **{"slice_height": 128, "slice_width": 160, "overlap_height_ratio": 0.25},
        **{"overlap_width_ratio": 0.25, "perform_standard_pred": False, "verbose": 0},
        **{"postprocess_type": "NMS", "postprocess_match_threshold": 1.1},
    }
    found = [
        found_by(get_sliced_prediction(str(image_file), sahi_model(kind, served), **options))
        for kind in KINDS
    ]
    assert np.abs(found[0][1] - found[1][1]).max() < 1e-5
    height, width = rgb.shape[:2]
    expected = []
    for y in starts(height, 128, 32):
        for x in starts(width, 160, 40):
            expected += served.detect(rgb[y : y + 128, x : x + 160]).scores.tolist()
    if "faster" in str(served.folder):
        assert len(expected) == len(found[0][1]) >= 30
        assert np.abs(found[0][1] - np.sort(expected)[::-1]).max() < 1e-5


def starts(length, size, overlap):
    """Where slices begin: the last ends with the image."""
    found = [0]
    while found[-1] + size < length:
        found.append(min(found[-1] + size - overlap, length - size))
    return found
