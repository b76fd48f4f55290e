"""BatchPredictor: the detections of tools/predict.py, in the columns of a table."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from rsb_d2 import UserError
from rsb_d2.addons.predict import BatchPredictor
from rsb_d2.addons.predict.files import find_images
from rsb_d2.addons.predict.pipeline import Options, predict_files
from rsb_d2.predictor import Predictor, load_predict_config
from tests.helpers.colour_finder import make_images
from tests.helpers.seeded_run import make_seeded_run

NUMBER = 10  # of which two are damaged


@pytest.fixture(scope="module")
def mask_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mask") / "run"
    make_seeded_run(folder, "mask")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = make_images(tmp_path_factory.mktemp("images") / "images", NUMBER)
    return [path for path, _ in find_images([str(folder)])]


@pytest.fixture(scope="module")
def expected(mask_run, images, tmp_path_factory):
    """The COCO results of ``rsb-d2 predict`` by path, and the errors of the others."""
    output = tmp_path_factory.mktemp("expected")
    predictor = Predictor.from_config(load_predict_config(run=str(mask_run), threshold=0.3))
    named = [(path, str(i)) for i, path in enumerate(images)]
    predict_files(predictor, named, str(output), Options(1, 0, pictures=False))
    records = json.loads((output / "images.json").read_text())["images"]
    results = json.loads((output / "results.json").read_text())
    found = {r["file_name"]: (r, []) for r in records}
    for result in results:
        found[images[result["image_id"] - 1]][1].append(result)
    assert len(results) > NUMBER
    return found


def check(rows, images, expected):
    assert [bool(error) for error in rows["error"]] == [path not in expected for path in images]
    for i, path in enumerate(images):
        if path not in expected:
            assert rows["boxes"][i] == rows["masks"][i] == [] and rows["height"][i] == 0
            continue
        record, results = expected[path]
        assert (rows["height"][i], rows["width"][i]) == (record["height"], record["width"])
        assert rows["scores"][i] == [r["score"] for r in results]
        assert rows["classes"][i] == [r["category_id"] for r in results]
        assert rows["masks"][i] == [r["segmentation"]["counts"] for r in results]
        boxes = np.array(rows["boxes"][i], np.float32).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        assert boxes.tolist() == np.array([r["bbox"] for r in results]).reshape(-1, 4).tolist()


def test_paths_in_batches_of_any_size(mask_run, images, expected):
    predictor = pickle.loads(pickle.dumps(BatchPredictor(str(mask_run), threshold=0.3)))
    ids = np.arange(NUMBER)
    parts = [
        predictor({"path": np.array(images[i:j]), "id": ids[i:j]}) for i, j in ((0, 3), (3, 10))
    ]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    check(rows, images, expected)
    assert list(rows["path"]) == images and list(rows["id"]) == list(ids)
    assert all(type(score) is float for scores in rows["scores"] for score in scores)
    # The process that has loaded a model sends only the arguments to another.
    assert len(pickle.dumps(predictor)) < 1000


def test_bytes_and_arrays(mask_run, images, expected):
    content = np.empty(NUMBER, dtype=object)
    content[:] = [open(path, "rb").read() for path in images]
    rows = BatchPredictor(str(mask_run), column="bytes", threshold=0.3)({"bytes": content})
    check(rows, images, expected)
    assert "bytes" not in rows
    arrays = np.empty(NUMBER, dtype=object)
    arrays[:] = [np.asarray(Image.open(p)) if p in expected else np.zeros((4, 5)) for p in images]
    rows = BatchPredictor(str(mask_run), column="image", threshold=0.3)({"image": arrays})
    check(rows, images, expected)
    assert rows["error"][4] == "not RGB of uint8 (H, W, 3) but float64 (4, 5)"


def test_damaged_images_are_read_as_far_as_the_config_says(mask_run, images, tmp_path):
    whole = next(p for p in images if open(p, "rb").read() and "8.jpg" not in p)
    content = open(whole, "rb").read()[:-20]
    (tmp_path / "cut.jpg").write_bytes(content)
    config = tmp_path / "partial.yaml"
    config.write_text(f"_BASE_: {mask_run}/config.yaml\nINPUT:\n  DAMAGED_IMAGES: partial\n")
    weights = str(mask_run / "model_final.pth")
    values = {"path": str(tmp_path / "cut.jpg"), "bytes": content}
    for column, value in values.items():
        batch = {column: np.array([value, None], dtype=object)}
        rows = BatchPredictor(weights, str(mask_run / "config.yaml"), column)(batch)
        assert "damaged" in rows["error"][0] and rows["error"][1]
        rows = BatchPredictor(weights, str(config), column)(batch)
        assert rows["error"][0] == "" and rows["height"][0] > 0 and rows["error"][1]


def test_several_images_at_once(mask_run, images, expected):
    rows = BatchPredictor(str(mask_run), threshold=0.3, batch_size=4)({"path": np.array(images)})
    scores = [r["score"] for path in images if path in expected for r in expected[path][1]]
    found = [score for scores in rows["scores"] for score in scores]
    assert len(found) == pytest.approx(len(scores), rel=0.1)
    assert rows["error"][4] == "the file is empty"


def test_an_empty_batch_has_all_columns(mask_run):
    rows = BatchPredictor(str(mask_run))({"path": np.array([], dtype=object)})
    names = {"path", "boxes", "scores", "classes", "masks", "height", "width", "error"}
    assert rows.keys() == names and all(len(column) == 0 for column in rows.values())


def test_mistakes_are_one_line(mask_run, images, tmp_path):
    batch = {"file": np.array(images), "id": np.arange(NUMBER)}
    with pytest.raises(UserError, match="has no column 'path'; it has file, id$"):
        BatchPredictor(str(mask_run))(batch)
    with pytest.raises(UserError, match="column is 'file'; write one of path, bytes, image"):
        BatchPredictor(str(mask_run), column="file")
    with pytest.raises(UserError, match="batch_size is 0"):
        BatchPredictor(str(mask_run), batch_size=0)
    with pytest.raises(UserError, match="there is no file"):
        BatchPredictor(str(tmp_path / "no.pth"), "mask_rcnn_rsb_1x")({"path": np.array(["a.jpg"])})
    rows = BatchPredictor(str(mask_run))({"path": np.array([None, "no.jpg"], dtype=object)})
    assert all(rows["error"])
