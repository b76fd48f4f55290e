"""The installed Detectron2, the patched wheel of 0.6 or a build of its main branch."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.installed import PATCHED, patched_only, run_python

# Importing a module that needs one of these may fail; no other import may.
OPTIONAL = {"caffe2", "onnx", "panopticapi", "scipy", "fairscale", "timm", "mmcv"}

IMPORT_ALL = """
import importlib, json, pkgutil
import detectron2
failed = {}
names = ["detectron2.projects." + x for x in ("point_rend", "deeplab", "panoptic_deeplab")]
walk = pkgutil.walk_packages(detectron2.__path__, "detectron2.", onerror=lambda name: None)
count = 0
for name in names + [module.name for module in walk]:
    count += 1
    try:
        importlib.import_module(name)
    except Exception as e:
        failed[name] = [type(e).__name__, str(e), getattr(e, "name", None)]
print(json.dumps([count, failed]))
"""


@pytest.mark.slow
def test_every_module_imports_on_its_own():
    count, failed = json.loads(run_python("-c", IMPORT_ALL).splitlines()[-1])
    assert count > 130
    unexpected = {
        module: error
        for module, error in failed.items()
        if error[0] != "ModuleNotFoundError" or error[2].partition(".")[0] not in OPTIONAL
    }
    assert unexpected == {}
    if PATCHED:
        assert {name.rpartition(".")[0] for name in failed} <= {"detectron2.export"}


def test_the_zoo_has_its_configs():
    from detectron2 import model_zoo
    from detectron2.model_zoo.model_zoo import _ModelZooUrls

    for name in _ModelZooUrls.CONFIG_PATH_TO_URL_SUFFIX:
        candidates = [name + ".yaml", name + ".py"]
        assert any(_is_config(model_zoo, candidate) for candidate in candidates), name
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    assert cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
    lazy = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
    assert lazy.model.num_classes == 80
    with pytest.raises(RuntimeError, match="nothing.yaml"):
        model_zoo.get_config_file("nothing.yaml")


def _is_config(model_zoo, name):
    try:
        return Path(model_zoo.get_config_file(name)).is_file()
    except RuntimeError:
        return False


def rotated_boxes():
    return torch.tensor([[5.0, 5.0, 4.0, 2.0, 30.0]])


def use_pairwise_iou():
    from detectron2.structures import RotatedBoxes, pairwise_iou_rotated

    pairwise_iou_rotated(RotatedBoxes(rotated_boxes()), RotatedBoxes(rotated_boxes()))


def use_roi_align():
    from detectron2.layers import ROIAlignRotated

    rois = torch.cat([torch.zeros(1, 1), rotated_boxes()], dim=1)
    ROIAlignRotated((2, 2), 1.0, 2)(torch.ones(1, 1, 8, 8), rois)


@patched_only
@pytest.mark.parametrize(
    "use",
    [use_pairwise_iou, use_roi_align],
)
def test_compiled_operators_are_missing(use):
    with pytest.raises(ImportError, match="compiled operators"):
        use()


@patched_only
@pytest.mark.parametrize(
    "name", ["Caffe2Tracer", "Caffe2Model", "export_caffe2_model", "export_onnx_model"]
)
def test_caffe2_is_missing(name):
    from detectron2 import export

    with pytest.raises(ImportError, match=f"{name}.*caffe2"):
        getattr(export, name)(None, None, None)
    with pytest.raises(ImportError, match=f"{name}.*caffe2"):
        getattr(export, name).load_protobuf("folder")
