"""The installed Detectron2, the patched wheel of 0.6 or a build of its main branch."""

import json
from pathlib import Path

import numpy as np
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


def use_deform_conv():
    from detectron2.layers import DeformConv

    DeformConv(1, 1, 3, padding=1)(torch.ones(1, 1, 8, 8), torch.zeros(1, 18, 8, 8))


def use_deformable_resnet():
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, True]
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    build_backbone(cfg)


@patched_only
@pytest.mark.parametrize(
    "use",
    [
        use_pairwise_iou,
        use_roi_align,
        use_deform_conv,
        use_deformable_resnet,
    ],
)
def test_using_what_needs_compiled_operators_raises(use):
    with pytest.raises(ImportError, match="compiled operators"):
        use()


@patched_only
@pytest.mark.parametrize(
    "name", ["Caffe2Tracer", "Caffe2Model", "export_caffe2_model", "export_onnx_model"]
)
def test_using_what_needs_caffe2_raises(name):
    from detectron2 import export

    with pytest.raises(ImportError, match=f"{name}.*caffe2"):
        getattr(export, name)(None, None, None)
    with pytest.raises(ImportError, match=f"{name}.*caffe2"):
        getattr(export, name).load_protobuf("folder")


def test_a_checkpoint_restores_the_momentum(tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, hooks

    def trainer():
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer = DefaultTrainer.__new__(DefaultTrainer)
        TrainerBase.__init__(trainer)
        trainer._trainer = SimpleTrainer(model, [None], optimizer)
        trainer.iter = 0
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
        trainer.register_hooks([hooks.LRScheduler(optimizer, scheduler)])
        return trainer, model, optimizer, scheduler

    first, model, optimizer, scheduler = trainer()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
    first.iter = 7
    DetectionCheckpointer(model, str(tmp_path), trainer=first).save("last", iteration=7)

    second, model, optimizer, scheduler = trainer()
    loaded = DetectionCheckpointer(model, str(tmp_path), trainer=second).resume_or_load("")
    assert loaded["iteration"] == 7
    assert second.iter == 7
    assert scheduler.last_epoch == 1
    momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(momentum) == 2
    assert all(m.abs().sum() > 0 for m in momentum)


LAUNCH = """
import sys
import torch
from detectron2.engine import launch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm

def work(wrap):
    rank = comm.get_rank()
    gathered = comm.all_gather({"rank": rank, "text": "x" * 5000 * rank})
    assert [len(x["text"]) for x in gathered] == [0, 5000]
    on_main = comm.gather(rank)
    assert on_main == ([0, 1] if rank == 0 else [])
    assert (comm.get_local_rank(), comm.get_local_size()) == (rank, 2)
    assert len(set(comm.all_gather(comm.shared_random_seed()))) == 1
    mean = comm.reduce_dict({"loss": torch.tensor(float(rank))})
    assert rank != 0 or mean["loss"] == 0.5
    assert torch.distributed.get_backend() == "gloo"
    if wrap:
        model = create_ddp_model(torch.nn.Linear(1, 1, bias=False))
        (model(torch.ones(1, 1)) * rank).sum().backward()
        assert model.module.weight.grad.item() == 0.5
    else:  # main leaves it to the end of the interpreter, whose order gloo does not always survive
        torch.distributed.destroy_process_group()

if __name__ == "__main__":
    launch(work, 2, dist_url="auto", args=("wrap" in sys.argv,))
    print("done")
"""


@pytest.mark.slow
def test_two_processes_work_together_without_a_gpu(tmp_path):
    # A file, so that the processes which it starts can import it.
    program = tmp_path / "launch_two.py"
    program.write_text(LAUNCH)
    # main gives a model on the CPU a GPU's index, which DistributedDataParallel refuses.
    assert run_python(program, "wrap" if PATCHED else "").endswith("done\n")


def test_polygons_become_bitmasks():
    from detectron2.structures import BitMasks, PolygonMasks

    square = np.array([2.0, 1.0, 6.0, 1.0, 6.0, 5.0, 2.0, 5.0])
    masks = BitMasks.from_polygon_masks(PolygonMasks([[square], []]), 8, 8)
    assert masks.tensor.dtype == torch.bool
    assert masks.tensor.sum(dim=(1, 2)).tolist() == [16, 0]
    assert masks.tensor[0, 1:5, 2:6].all()
    assert PolygonMasks([[square], []]).nonempty().tolist() == [True, False]


def test_pictures_are_drawn():
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer

    grey = np.full((40, 60, 3), 127, dtype=np.uint8)
    assert np.array_equal(VisImage(grey).get_image(), grey)

    found = Instances((40, 60))
    found.pred_boxes = Boxes(torch.tensor([[5.0, 5.0, 40.0, 30.0]]))
    found.scores = torch.tensor([0.9])
    found.pred_classes = torch.tensor([0])
    found.pred_masks = torch.zeros(1, 40, 60, dtype=torch.bool)
    found.pred_masks[0, 8:28, 8:38] = True
    for mode in ColorMode:
        drawn = Visualizer(grey, scale=1.5, instance_mode=mode).draw_instance_predictions(found)
        image = drawn.get_image()
        assert image.shape == (60, 90, 3)
        assert len(np.unique(image)) > 10


def test_images_are_transformed():
    from detectron2.data import transforms as T

    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert T.ExtentTransform((0, 0, 8, 8), (8, 8)).apply_image(image).shape == (8, 8, 3)
    resized = T.ResizeShortestEdge(16, 32).get_transform(image).apply_image(image)
    assert resized.shape == (16, 16, 3)


def test_class_counts_are_printed():
    from detectron2.data.build import print_instances_class_histogram

    annotations = [{"category_id": 0}, {"category_id": 1, "iscrowd": 1}]
    print_instances_class_histogram([{"annotations": annotations}], ["cat", "dog"])


def test_coco_evaluation_runs(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, Instances

    annotation = {
        "id": 1,
        "image_id": 3,
        "category_id": 9,
        "bbox": [10, 10, 40, 40],
        "area": 1600,
        "iscrowd": 0,
        "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]],
    }
    (tmp_path / "coco.json").write_text(
        json.dumps(
            {
                "info": {},
                "images": [{"id": 3, "file_name": "3.jpg", "height": 64, "width": 64}],
                "annotations": [annotation],
                "categories": [{"id": 9, "name": "cat"}],
            }
        )
    )
    name = "test_install_detectron2_coco"
    register_coco_instances(name, {}, str(tmp_path / "coco.json"), str(tmp_path))
    try:
        DatasetCatalog.get(name)  # fills in the metadata
        found = Instances((64, 64))
        found.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 50.0, 50.0]]))
        found.scores = torch.tensor([0.9])
        found.pred_classes = torch.tensor([0])
        found.pred_masks = torch.zeros(1, 64, 64, dtype=torch.bool)
        found.pred_masks[0, 10:50, 10:50] = True
        evaluator = COCOEvaluator(name, tasks=("bbox", "segm"), distributed=False)
        evaluator.reset()
        evaluator.process([{"image_id": 3}], [{"instances": found}])
        results = evaluator.evaluate()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)


def test_anchors_keep_their_order():
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

    generator = DefaultAnchorGenerator(sizes=[[32]], aspect_ratios=[[1.0]], strides=[4], offset=0.0)
    (anchors,) = generator([torch.zeros(1, 1, 2, 3)])
    centers = anchors.get_centers()
    assert centers[:, 0].tolist() == [0, 4, 8, 0, 4, 8]
    assert centers[:, 1].tolist() == [0, 0, 0, 4, 4, 4]
