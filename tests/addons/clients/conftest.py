"""What the tests of other people's programs share: a run, its package, an image."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from PIL import Image

from rsb_d2.addons.export.package import export_package
from rsb_d2.addons.predict.bgr_predictor import BGRPredictor
from rsb_d2.addons.workbench.sample.draw import draw_picture
from rsb_d2.predictor import Predictor
from tests.helpers.models.exporting import NAMES, THRESHOLD, pictures
from tests.helpers.seeded_run import make_seeded_run


class Served:
    """A model in its two forms.

    Args:
        folder (Path): of the package.
        cfg (CfgNode): of the model.
        model (nn.Module): the model itself, in memory.
    """

    def __init__(self, folder, cfg, model):
        self.folder = folder
        self.names = json.loads((folder / "classes.json").read_text())["thing_classes"]
        self.ours = Predictor(cfg, model, NAMES)
        self.in_memory = BGRPredictor(self.ours)

    def package(self):
        """The package as plain Detectron2 loads it."""
        cfg = get_cfg()
        cfg.merge_from_file(str(self.folder / "config.yaml"))
        return DefaultPredictor(cfg)

    def detect(self, rgb):
        """What this project itself finds."""
        (instances,) = self.ours([self.ours.prepare(rgb)])
        return instances


@pytest.fixture(scope="package", params=["faster", "mask"])
def served(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    cfg, model = make_seeded_run(folder / "run", request.param, *THRESHOLD)
    export_package(cfg, model, NAMES, str(folder / "package"), pictures(1))
    return Served(folder / "package", cfg, model)


@pytest.fixture(scope="package")
def image_file(tmp_path_factory):
    """An RGB image in which no two channels are alike, without loss."""
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.fromarray(draw_picture(np.random.default_rng(4), 320)[0]).save(path)
    return Path(path)


@pytest.fixture
def rgb(image_file):
    return np.array(Image.open(image_file))
