"""What the tests of exported files share: a config's options, names and pictures."""

import numpy as np

from rsb_d2.addons.workbench.sample.draw import draw_picture
from rsb_d2.data.class_names import ClassNames
from rsb_d2.predictor import Predictor
from tests.helpers.seeded_run import (
    CLASSES,
    IDS,
)

THRESHOLD = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.3"]
NAMES = ClassNames(tuple(CLASSES), tuple(IDS))


def pictures(number=2, size=200):
    return [draw_picture(np.random.default_rng(i), size)[0] for i in range(number)]


def small(cfg, images):
    predictor = Predictor(cfg, None, NAMES)
    return [predictor.prepare(i)["image"].permute(1, 2, 0).numpy().copy() for i in images]
