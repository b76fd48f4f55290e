"""Exported files, each made once for all the tests of the folder."""

import pytest

from rsb_d2.addons.export import export_detector
from tests.helpers.models.exporting import NAMES, THRESHOLD, pictures
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A function that exports each kind of model once."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def export(kind, suffix="onnx"):
        if (kind, suffix) not in done:
            sizes = ["INPUT.MIN_SIZE_TEST", "160", "INPUT.MAX_SIZE_TEST", "224"]
            large = sizes if (kind, suffix) == ("retinanet", "pt2") else []
            cfg = make_seeded_config(kind, *THRESHOLD, *large)
            model = make_seeded_model(cfg)
            path = str(folder / f"{kind}.{suffix}")
            done[kind, suffix] = model, export_detector(cfg, model, NAMES, path, pictures())
        return done[kind, suffix]

    return export


@pytest.fixture(scope="session")
def fixed_openvino(tmp_path_factory):
    """A model, and its files of one size for OpenVINO."""
    pytest.importorskip("openvino")
    cfg = make_seeded_config("faster", *THRESHOLD)
    model = make_seeded_model(cfg)
    path = str(tmp_path_factory.mktemp("openvino") / "m.xml")
    return model, export_detector(cfg, model, NAMES, path, pictures(), (100, 170))
