"""Inference of Faster R-CNN with ResNet-50 and FPN: stock Detectron2 and optimize_for_inference.

Both have the same seeded weights, which give 1,000 proposals and 100 detections in every image. In
float32 both must give the same detections; in lower precision the same AP on the sample data, with
--weights, or on a GPU as many of stock's detections as stock itself in mixed precision.
"""

import argparse
import os
import tempfile
from functools import cached_property
from typing import Any, Dict, List

import torch
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Instances, pairwise_iou
from torch import nn

from rsb_d2.addons.accelerate import optimize_for_inference
from rsb_d2.addons.export.comparison import Detections, compare
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.data import register_coco_json
from rsb_d2.errors import UserError
from rsb_d2.evaluation import build_evaluator
from rsb_d2.predictor import load_detector, load_predict_config

from .harness import DTYPES, Different, Prepared, add_model_arguments, verdict
from .models import build_ours, build_stock, make_images, tf32

SCORE_TOLERANCE, BOX_TOLERANCE = 1e-4, 0.01  # pixels
AP_TOLERANCE = 0.1  # points of 100
SHARE_TOLERANCE = 0.02
_COMPILE = {"": False, "default": True, "reduce-overhead": "reduce-overhead"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        default="",
        choices=list(_COMPILE),
        help="ours with torch.compile or, on a GPU, with CUDA graphs",
    )
    parser.add_argument(
        "--weights",
        type=os.path.expanduser,
        default="",
        metavar="FILE",
        help="trained on the sample data; needed for --dtype other than float32 on the CPU",
    )


def contenders(args: argparse.Namespace) -> List[str]:
    on_gpu, is_low = args.device != "cpu", args.dtype != "float32"
    if is_low and not (on_gpu or args.weights):
        raise UserError(
            f"--dtype {args.dtype} is compared with float32 by AP: name with --weights a model "
            "that was trained on the sample data, such as output/frcnn_rsb_sample/model_final.pth"
        )
    names = ["stock", *(["stock, TF32"] if on_gpu else [])]
    names += ["stock, autocast"] if on_gpu or is_low else []
    return [*names, *(["ours, TF32"] if on_gpu and not is_low else []), "ours"]


def prepare(args: argparse.Namespace, name: str) -> Prepared:
    dtype = DTYPES[args.dtype]
    if name in ("ours", "ours, TF32"):
        model = _optimize(build_ours(args.device), args)
    else:
        model = build_stock(args.device)
    autocast = None
    if name == "stock, autocast":
        autocast = torch.float16 if dtype == torch.float32 else dtype
    return _Parts(
        model, make_images(args.image_size, args.batch), autocast, "TF32" in name
    ).prepare()


def _optimize(model: nn.Module, args: argparse.Namespace) -> nn.Module:
    return optimize_for_inference(model, DTYPES[args.dtype], _COMPILE[args.compile])


class _Parts:
    """A detector, and each of its parts on the output of the parts before it."""

    def __init__(self, model: nn.Module, batch: List[dict], autocast: Any, with_tf32: bool):
        self.model, self.batch = model, batch
        self.autocast, self.with_tf32 = autocast, with_tf32

    def prepare(self) -> Prepared:
        model, heads = self.model, self.model.roi_heads
        parts = {
            "end to end": lambda: model(self.batch),
            "backbone and FPN": lambda: model.backbone(self.images.tensor),
            "RPN": lambda: model.proposal_generator(self.images, self.features, None),
            "ROI heads": lambda: heads(self.images, self.features, self.proposals, None),
            "of which the pooler": lambda: heads.box_pooler(
                [self.features[name] for name in heads.box_in_features],
                [proposals.proposal_boxes for proposals in self.proposals],
            ),
        }
        calls = {name: lambda part=part: self.run(part) for name, part in parts.items()}
        return Prepared(calls, lambda: [r["instances"] for r in calls["end to end"]()])

    def run(self, part: Any) -> Any:
        device, enabled = self.model.device.type, self.autocast is not None
        autocast = torch.autocast(device, self.autocast, enabled)
        with torch.no_grad(), tf32(self.with_tf32), autocast:
            return part()

    @cached_property
    def images(self) -> Any:
        return self.run(lambda: self.model.preprocess_image(self.batch))

    @cached_property
    def features(self) -> Dict[str, torch.Tensor]:
        features = self.run(lambda: self.model.backbone(self.images.tensor))
        return {name: f.clone() for name, f in features.items()}  # a CUDA graph reuses its memory

    @cached_property
    def proposals(self) -> List[Instances]:
        return self.run(lambda: self.model.proposal_generator(self.images, self.features, None))[0]


def check(args: argparse.Namespace, results: Dict[str, List[Instances]]) -> str:
    if args.dtype == "float32":
        others = {name: results[name] for name in results if name in ("stock", "ours")}
        return same_detections({n: list(map(to_arrays, found)) for n, found in others.items()})
    if args.weights:
        return _compare_ap(args)
    mixed, ours = (
        share_found(results["stock"], results[name]) for name in ("stock, autocast", "ours")
    )
    text = f"{ours:.3f} of stock's detections found again, {mixed:.3f} by stock in mixed precision"
    return verdict(ours >= mixed - SHARE_TOLERANCE, text)


def to_arrays(found: Instances) -> Detections:
    """Convert Detectron2's detections of an image."""
    found = found.to("cpu")
    boxes, scores, classes = found.pred_boxes.tensor, found.scores, found.pred_classes
    return Detections(*(x.detach().float().numpy() for x in (boxes, scores, classes)))


def same_detections(results: Dict[str, List[Detections]], threshold: float = 0.05) -> str:
    """Compare the detections of all contenders, in float32, with those of the first."""
    (reference, expected), *others = results.items()
    number = sum(map(len, expected))
    score = box = 0.0
    for name, found in others:
        for a, b in zip(expected, found):
            try:
                difference = compare(a, b, threshold, len(a), BOX_TOLERANCE, SCORE_TOLERANCE)
            except UserError as e:
                raise Different(f"{reference} and {name}: {e}") from None
            score, box = max(score, difference.score), max(box, difference.box)
    if not number:
        raise Different("nothing is detected, so there is nothing to compare")
    return f"{number} detections, scores within {score:.1e}, boxes within {box:.1e} pixels"


def share_found(expected: List[Instances], found: List[Instances]) -> float:
    """Return the share of detections with a counterpart: its class, IoU 0.9, score within 0.05."""
    number = 0
    for a, b in zip(expected, found):
        if len(a) and len(b):
            fits = pairwise_iou(a.pred_boxes, b.pred_boxes) >= 0.9
            fits &= a.pred_classes[:, None] == b.pred_classes[None]
            fits &= (a.scores[:, None] - b.scores[None]).abs() <= 0.05
            number += int(fits.any(dim=1).sum())
    return number / (sum(map(len, expected)) or float("nan"))


def _compare_ap(args: argparse.Namespace) -> str:
    """Compare the AP on the sample val split in a lower precision with that in float32."""
    cfg = load_predict_config("frcnn_rsb_sample", args.weights, device=args.device)
    make_sample_data("datasets/rsb_sample")
    register_coco_json(cfg, eval_only=True)
    model, _ = load_detector(cfg)
    name = cfg.DATASETS.TEST[0]
    aps = []
    for evaluated in (model, _optimize(model, args)):
        with tempfile.TemporaryDirectory() as folder:
            loader, evaluator = (
                build_detection_test_loader(cfg, name),
                build_evaluator(cfg, name, folder),
            )
            aps.append(inference_on_dataset(evaluated, loader, evaluator)["bbox"]["AP"])
    text = f"AP {aps[1]:.2f} on the sample val split, {aps[0]:.2f} in float32"
    was_trained = aps[0] > 10
    return verdict(was_trained and abs(aps[1] - aps[0]) <= AP_TOLERANCE, text)
