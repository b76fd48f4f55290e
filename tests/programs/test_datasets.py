"""train_net.py on small data in the layouts of COCO, LVIS, VOC, Cityscapes and ADE20k.

The data sets have Detectron2's own names, so a user's data is read and evaluated in the same way.
"""

import importlib.util
import json
import os

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser

import train_net
from tests.helpers.data import layouts
from tests.helpers.paths import CONFIGS

pytestmark = pytest.mark.skipif(
    os.environ.get("DETECTRON2_DATASETS", "datasets") != "datasets",
    reason="Detectron2's data sets are elsewhere",
)
needs_cityscapes = pytest.mark.skipif(
    not (importlib.util.find_spec("cityscapesscripts") and importlib.util.find_spec("shapely")),
    reason="needs cityscapesscripts and shapely",
)
needs_lvis = pytest.mark.skipif(not importlib.util.find_spec("lvis"), reason="needs lvis")

SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "resnet10t", "MODEL.WEIGHTS", ""),
    *("MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.TIMM.NORM_EVAL", "False"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "100", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "20", "TEST.DETECTIONS_PER_IMAGE", "10"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "INPUT.MIN_SIZE_TRAIN", "(64,)"),
    *("INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "1", "SEED", "1"),
    *("SOLVER.BASE_LR", "0.0001", "TEST.EVAL_PERIOD", "2", "TEST.VAL_LOSS", "True"),
]
SEM_SEG = [
    *("MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "('p2', 'p3', 'p4', 'p5')"),
]
MASKS = ("MODEL.MASK_ON", "True")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Detectron2's empty folder of data sets in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "datasets").mkdir()
    return tmp_path / "datasets"


def run(*opts, config="Base-RCNN-FPN-RSB.yaml", eval_only=False):
    arguments = ["--config-file", str(CONFIGS / config), *(["--eval-only"] if eval_only else [])]
    return train_net.main(default_argument_parser().parse_args([*arguments, *SMALL, *opts]))


def check(train, test, *opts, figures, best=None, config="Base-RCNN-FPN-RSB.yaml"):
    """Train with evaluation, then evaluate the model: expected metrics, equal in both.

    Args:
        figures (dict[str, str]): names of metrics by task.
        best (str): the metric by which model_best.pth must be chosen.
    """
    data = ("DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)")
    run(*data, *opts, "OUTPUT_DIR", "output", config=config)
    weights = ("MODEL.WEIGHTS", "output/model_final.pth", "OUTPUT_DIR", "evaluated")
    evaluated = run(*data, *opts, *weights, config=config, eval_only=True)
    lines = [json.loads(line) for line in open("output/metrics.json")]
    trained = {name: value for line in lines for name, value in line.items()}
    assert trained["val_total_loss"] > 0
    assert set(evaluated) == set(figures)
    for task, names in figures.items():
        assert set(names.split()) <= set(evaluated[task])
        of_task = {name: trained[f"{task}/{name}"] for name in evaluated[task]}
        assert of_task == pytest.approx(evaluated[task], nan_ok=True, abs=1e-3)
    expected = best or f"{next(iter(figures))}/AP"
    assert json.load(open("output/best.json"))["metric"] == expected
    assert torch.load("output/model_best.pth", weights_only=True)["model"]
    assert {"curves.png", "detections.png"} <= set(os.listdir("output"))


COCO = "AP AP50 AP75 APs APm APl"


@pytest.mark.slow  # tests/evaluation covers test-time augmentation
def test_coco_boxes_with_test_time_augmentation(root):
    layouts.make_coco(root)
    tta = ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48, 64)")
    figures = {"bbox": COCO, "bbox_TTA": COCO}
    check("coco_2017_train", "coco_2017_val", *tta, figures=figures)
    assert os.path.exists("output/inference_TTA/coco_instances_results.json")


@pytest.mark.slow
def test_coco_masks_with_large_scale_jitter(root):
    layouts.make_coco(root)
    jitter = ("INPUT.LSJ.ENABLED", "True", "INPUT.LSJ.SIZE", "96")
    figures = {"bbox": COCO, "segm": COCO}
    check("coco_2017_train", "coco_2017_val", *MASKS, *jitter, figures=figures)


def test_coco_keypoints(root):
    layouts.make_coco(root)
    opts = ("MODEL.KEYPOINT_ON", "True", "MODEL.ROI_HEADS.NUM_CLASSES", "1")
    figures = {"bbox": COCO, "keypoints": "AP AP50 AP75 APm APl"}
    check("keypoints_coco_2017_train", "keypoints_coco_2017_val", *opts, figures=figures)


def test_coco_panoptic(root):
    layouts.make_coco(root)
    figures = {"sem_seg": "mIoU fwIoU mACC pACC", "bbox": COCO, "segm": COCO}
    has_package = importlib.util.find_spec("panopticapi")
    if has_package:
        figures["panoptic_seg"] = "PQ SQ RQ PQ_th SQ_th RQ_th PQ_st SQ_st RQ_st"
    sets = [f"coco_2017_{split}_panoptic_separated" for split in ("train", "val")]
    check(*sets, figures=figures, best="bbox/AP", config="panoptic_fpn_rsb_1x.yaml")


@pytest.mark.slow
@needs_lvis
def test_lvis(root):
    layouts.make_lvis(root)
    figures = {task: f"{COCO} APr APc APf" for task in ("bbox", "segm")}
    check("lvis_v1_train", "lvis_v1_val", figures=figures, config="mask_rcnn_rsb_lvis_v1_1x.yaml")


@needs_lvis
@pytest.mark.skipif(
    "USE_FED_LOSS" not in get_cfg().MODEL.ROI_BOX_HEAD, reason="of Detectron2's main branch"
)
def test_lvis_with_federated_loss(root):
    """Scores are those of the sigmoid."""
    layouts.make_lvis(root)
    head = "MODEL.ROI_BOX_HEAD."
    opts = (f"{head}USE_FED_LOSS", "True", f"{head}USE_SIGMOID_CE", "True")
    figures = {task: f"{COCO} APr APc APf" for task in ("bbox", "segm")}
    config = "mask_rcnn_rsb_lvis_v1_1x.yaml"
    check("lvis_v1_train", "lvis_v1_val", *opts, figures=figures, config=config)


def test_pascal_voc(root):
    layouts.make_voc(root)
    opts = ("MODEL.ROI_HEADS.NUM_CLASSES", "20")
    check("voc_2007_trainval", "voc_2007_test", *opts, figures={"bbox": "AP AP50 AP75"})


@pytest.mark.slow
@needs_cityscapes
def test_cityscapes_instances(root):
    layouts.make_cityscapes(root)
    opts = (*MASKS, "MODEL.ROI_HEADS.NUM_CLASSES", "8")
    sets = [f"cityscapes_fine_instance_seg_{split}" for split in ("train", "val")]
    check(*sets, *opts, figures={"segm": "AP AP50"}, best="segm/AP")


@pytest.mark.slow
@needs_cityscapes
def test_cityscapes_semantic(root):
    layouts.make_cityscapes(root)
    opts = (*SEM_SEG, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19")
    sets = [f"cityscapes_fine_sem_seg_{split}" for split in ("train", "val")]
    check(*sets, *opts, figures={"sem_seg": "IoU iIoU IoU_sup iIoU_sup"}, best="sem_seg/IoU")


def test_ade20k_semantic(root):
    layouts.make_ade20k(root)
    opts = (*SEM_SEG, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "150")
    figures = {"sem_seg": "mIoU fwIoU mACC pACC"}
    check("ade20k_sem_seg_train", "ade20k_sem_seg_val", *opts, figures=figures, best="sem_seg/mIoU")
