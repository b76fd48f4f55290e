"""The lines of docs/ecosystem.md that are said to need no rsb_d2, where there is none."""

import json

import numpy as np
import pytest
from PIL import Image

from rsb_d2.addons.export.plain import export_package
from rsb_d2.addons.workbench.sample.draw import draw_picture
from tests.helpers.models.exporting import NAMES, pictures
from tests.helpers.pages import find_blocks, read
from tests.helpers.runs.without_rsb_d2 import run_without_rsb_d2
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model

PREDICTIONS = "output/frcnn_rsb_sample/predictions"


@pytest.mark.slow
def test_blocks_that_name_no_rsb_d2_need_none(tmp_path):
    blocks = [b.text for b in find_blocks(read("docs/ecosystem.md"), "python")]
    without = [text for text in blocks if "rsb_d2." not in text]
    assert len(without) == 4 and len(blocks) == 6
    cfg = make_seeded_config("faster")
    (tmp_path / PREDICTIONS).mkdir(parents=True)
    folder = tmp_path / "output" / "package"
    export_package(cfg, make_seeded_model(cfg), NAMES, str(folder), pictures(1))
    (tmp_path / "datasets" / "rsb_sample" / "val").mkdir(parents=True)
    image = Image.fromarray(draw_picture(np.random.default_rng(2), 240)[0])
    for name in ("image.jpg", "datasets/rsb_sample/val/000001.jpg"):
        image.save(tmp_path / name)
    # As tools/predict.py, which needs rsb_d2, writes them.
    categories = [{"id": i, "name": n} for i, n in zip(NAMES.ids, NAMES.names)]
    images = {"images": [{"id": 1, "file_name": "image.jpg"}], "categories": categories}
    results = [{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}]
    (tmp_path / PREDICTIONS / "images.json").write_text(json.dumps(images))
    (tmp_path / PREDICTIONS / "results.json").write_text(json.dumps(results))
    done = run_without_rsb_d2("\n".join(without), tmp_path)
    assert str(list(NAMES.names)) in done.stdout
    assert (tmp_path / "annotated.png").exists()
