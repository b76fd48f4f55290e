"""BatchPredictor in Ray Data, with two actors on this machine."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from rsb_d2.addons.predict import BatchPredictor
from rsb_d2.addons.predict.files import find_images
from rsb_d2.addons.predict.pipeline import Options, predict_files
from rsb_d2.predictor import Predictor, load_predict_config
from tests.helpers.paths import ROOT

NUMBER = int(os.environ.get("PREDICTED_IMAGES", 200))


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(NUMBER):
        shape = (int(rng.integers(40, 90)), int(rng.integers(40, 90)), 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i:05d}.jpg")
    damaged = {3: b"", 50: b"no image", NUMBER - 1: (folder / "00000.jpg").read_bytes()[:600]}
    for i, content in damaged.items():
        (folder / f"{i:05d}.jpg").write_bytes(content)
    return folder, damaged


@pytest.fixture
def ray(monkeypatch):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_two_actors_find_what_one_process_finds(ray, images, seeded_run, tmp_path):
    folder, damaged = images
    rows = ray.data.read_binary_files(str(folder), include_paths=True).map_batches(
        BatchPredictor,
        fn_constructor_args=(str(seeded_run), None, "bytes"),
        batch_size=16,
        concurrency=2,
    )
    rows = sorted(rows.take_all(), key=lambda row: row["path"])
    assert [os.path.basename(row["path"]) for row in rows] == sorted(os.listdir(folder))
    assert [i for i, row in enumerate(rows) if row["error"]] == list(damaged)

    predictor = Predictor.from_config(load_predict_config(run=str(seeded_run), threshold=0.5))
    named = find_images([str(folder)])
    predict_files(predictor, named, str(tmp_path / "out"), Options(1, 0, pictures=False))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results) > NUMBER
    found = [
        (i + 1, category, score)
        for i, row in enumerate(rows)
        for category, score in zip(row["classes"], row["scores"])
    ]
    expected = [(r["image_id"], r["category_id"], r["score"]) for r in results]
    assert sorted(found) == sorted(expected)
    boxes = [box for row in rows for box in row["boxes"]]
    sizes = np.array([r["bbox"] for r in results])
    np.testing.assert_allclose(np.array(boxes)[:, :2], sizes[:, :2], atol=1e-4)
    np.testing.assert_allclose(
        np.diff(np.array(boxes).reshape(-1, 2, 2), axis=1)[:, 0], sizes[:, 2:], atol=1e-4
    )
