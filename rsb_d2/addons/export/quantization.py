"""A detector's OpenVINO model with its layers in int8, quantized by NNCF.

Convolutions and fully connected layers compute in int8, and so do the additions of features
between them. Everything else stays in float32: quantized, the decoding of boxes costs several
points of AP.

In files for images of any size, OpenVINO 2026.4 returns zeros from int8 layers that read a
convolution whose bias is zero and whose output something else reads, too. So are the outputs of an
FPN before its first training step, and the AP of such a file is near 0.
"""

import itertools
import logging
import math
import os
import re
import tempfile
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable, Dict, List, Sequence, Set, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from ...config.loading import load_config
from ...data import register_coco_json
from ...data.dataset_dicts import load_dicts
from ...data.datasets import registered
from ...data.images import BadImageError, read_image
from ...engine import Trainer
from ...errors import UserError, first
from ...evaluation import COCOEvaluator, check_evaluators
from ...predictor import Preparation
from ..predict.files import find_images
from .comparison import Detections
from .files import Detector, import_openvino, import_packages, run_openvino_model, save_ir

logger = logging.getLogger(__name__)

# The numbers of images to calibrate on: NNCF's default, and fewest for stable ranges.
_MOST_IMAGES, _FEWEST_IMAGES = 300, 32
# Layers are compared on this many validation images, in groups of this many, to name this many.
_NUM_COMPARED, _GROUP, _NUM_NAMED = 50, 8, 3

_LAYERS = (
    *("Convolution", "GroupConvolution", "MatMul"),
    *("ConvolutionBackpropData", "GroupConvolutionBackpropData"),
)
# What can follow a layer, or the sum of two, and is still a part of the network.
_BETWEEN_LAYERS = (
    *("Add", "Subtract", "Multiply", "Divide", "MaxPool", "AvgPool", "ReduceMean", "Interpolate"),
    *("Relu", "PRelu", "Clamp", "Elu", "Gelu", "Swish", "HSwish", "Mish", "Sigmoid", "HSigmoid"),
)

# From a resized image to the image that the file takes, and the size of the former in the latter.
Prepare = Callable[[np.ndarray], Tuple[np.ndarray, Tuple[int, int]]]


@dataclass
class Int8:
    """How to quantize a detector.

    Args:
        images (list[str]): paths of the images to calibrate on.
        max_ap_drop (float): in points of AP (0 ... 100); a model that loses more is refused.
        keep_float (Sequence[str]): names of layers that stay in float32, or their beginnings.
    """

    images: List[str]
    max_ap_drop: float = 0.5
    keep_float: Sequence[str] = ()


@dataclass
class Quantized:
    """A quantized detector.

    Args:
        xml (bytes): content of OpenVINO's ``.xml`` file.
        weights (bytes): content of its ``.bin`` file.
        layers (list[str]): names of the layers in int8.
        dataset (str): name of the data set of the AP.
        before (dict[str, float]): AP (0 ... 100) of the float32 file by task, ``bbox`` or
            ``segm``.
        after (dict[str, float]): AP of the int8 file.
    """

    xml: bytes
    weights: bytes
    layers: List[str]
    dataset: str
    before: Dict[str, float]
    after: Dict[str, float]


def import_nncf() -> ModuleType:
    """Import ``nncf``; raises a :class:`UserError` if it is not installed."""
    return import_packages("--int8 needs a package more", "nncf")[0]


# ---- images to calibrate on, and data to measure on ----


def calibration_images(source: str) -> List[str]:
    """Find the images to calibrate on.

    Args:
        source (str): a folder or anything else that :func:`find_images` takes, or a config file
            (``.yaml``), for the images of its ``DATASETS.TRAIN``.

    Returns:
        list[str]: paths of up to 300 images that can be read, evenly spread over all of them.

    Raises:
        UserError: if there is no such folder or config, or fewer than 32 images.
    """
    if source.endswith((".yaml", ".yml")):
        paths = _training_images(source)
    else:
        paths = [path for path, _ in find_images([source])]
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), _MOST_IMAGES)).round().astype(int)
    readable = [paths[i] for i in chosen if _is_readable(paths[i])]
    if len(readable) < _FEWEST_IMAGES:
        raise UserError(
            f"--calibrate: {source} has {len(readable)} images that can be read; name a folder or "
            f"a config with {_FEWEST_IMAGES} or more"
        )
    return readable


def _training_images(config_file: str) -> List[str]:
    if not os.path.isfile(config_file):
        raise UserError(f"--calibrate: there is no config {config_file}")
    cfg = load_config(config_file, [])
    register_coco_json(cfg)
    if not cfg.DATASETS.TRAIN:
        raise UserError(f"--calibrate: DATASETS.TRAIN of {config_file} is empty")
    for name in cfg.DATASETS.TRAIN:
        registered(name, "DATASETS.TRAIN")
    records = itertools.chain(*map(load_dicts, cfg.DATASETS.TRAIN))
    return [record["file_name"] for record in records]


def _is_readable(path: str) -> bool:
    try:
        read_image(path, "RGB")
    except BadImageError as e:
        logger.warning(f"Not calibrated on {e.path}: {e.reason}")
        return False
    return True


def check_test_data(cfg: CfgNode) -> str:
    """Return the name of the data set that the AP is measured on, the first of the test sets.

    Args:
        cfg (CfgNode): its ``DATASETS`` are registered.

    Raises:
        UserError: if there is none, or it cannot be evaluated.
    """
    if not cfg.DATASETS.TEST:
        raise UserError(
            "--int8 measures the AP before and after, but DATASETS.TEST is empty: name a data set "
            "with --opts"
        )
    register_coco_json(cfg, eval_only=True)
    check_evaluators(cfg)
    return cfg.DATASETS.TEST[0]


# ---- quantizing ----


def quantize(cfg: CfgNode, int8: Int8, xml: bytes, weights: bytes, prepare: Prepare) -> Quantized:
    """Quantize a detector's OpenVINO model, and measure its AP before and after.

    Args:
        cfg (CfgNode): of the detector; the first of its ``DATASETS.TEST`` is evaluated.
        int8 (Int8): the images and limits.
        xml (bytes): content of the ``.xml`` file.
        weights (bytes): content of the ``.bin`` file.
        prepare (callable): from a uint8 image (H, W, 3), resized as for the evaluation, to the
            image that the file takes, and the height and width of the first image in it.

    Returns:
        Quantized

    Raises:
        UserError: if the AP falls by more than ``int8.max_ap_drop`` points; it names the layers
            that cost most. Also if a name of ``int8.keep_float`` is the name of no layer.
    """
    nncf = import_nncf()
    model = import_openvino().Core().read_model(xml, weights)
    dataset = check_test_data(cfg)
    _, names = _network(model)
    for name in int8.keep_float:
        if not any(layer_name(layer).startswith(name) for layer in names):
            raise UserError(
                f"--keep-float: no layer's name begins with {name}; there are "
                f"{first(map(layer_name, names))}"
            )
    between, layers = _network(model, tuple(int8.keep_float))
    if not layers:
        raise UserError("--keep-float leaves no layer to quantize")
    inside = between.union(layers)
    outside = [name for op in model.get_ops() if (name := op.get_friendly_name()) not in inside]
    before = measure_ap(cfg, dataset, run_openvino_model(model), prepare)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(int8.images, _reader(cfg, prepare)),
        subset_size=len(int8.images),
        preset=nncf.QuantizationPreset.MIXED,  # a zero point for features of both signs
        ignored_scope=nncf.IgnoredScope(names=outside, validate=False),
    )
    found = measure_ap(cfg, dataset, run_openvino_model(quantized), prepare)
    after = {task: found.get(task, 0.0) for task in before}  # without a detection there is no segm
    drop, task = max((before[task] - after[task], task) for task in before)
    if drop > int8.max_ap_drop:
        raise UserError(
            f"the {task} AP on {dataset} falls from {before[task]:.2f} to {after[task]:.2f} in "
            f"int8, by more than --max-ap-drop {int8.max_ap_drop}"
            + _costs(cfg, dataset, quantized, layers, prepare)
        )
    return Quantized(*save_ir(quantized), list(map(layer_name, layers)), dataset, before, after)


def layer_name(operation: str) -> str:
    """The name of the module that an operation of an exported model was made from.

    Args:
        operation (str): ``/backbone/fpn_lateral2/Conv/WithoutBiases``, for example.

    Returns:
        str: ``backbone.fpn_lateral2``. From its second call on, a module has a number, as in
        ``rpn_head.conv_1``.
    """
    path = re.sub(r"^/?(model/)?|/(Conv\w*|Gemm|MatMul)(_\d+)?(/.*)?$", "", operation)
    return re.sub(r"(\w+)/\1\.", r"\1.", path).replace("/", ".")


def _network(model: Any, kept: Tuple[str, ...] = ()) -> Tuple[Set[str], List[str]]:
    """The operations between layers, and the layers in their order, except those that are kept.

    The network begins at the layers, and ends where features are reshaped or selected, as before
    decoding, so that it does not depend on names.
    """
    constant, between, layers = set(), set(), []
    for op in model.get_ordered_ops():
        kind, name = op.get_type_name(), op.get_friendly_name()
        sources = [op.input_value(i).get_node() for i in range(op.get_input_size())]
        sources = [source.get_friendly_name() for source in sources]
        if kind in ("Constant", "ShapeOf") or (sources and constant.issuperset(sources)):
            constant.add(name)
        elif kind in _LAYERS and sources[1] in constant:
            if not layer_name(name).startswith(kept):
                layers.append(name)
        elif kind in _BETWEEN_LAYERS:
            if kind in ("Interpolate", "ReduceMean"):
                sources = sources[:1]  # the others are sizes and axes
            if between.union(layers).issuperset(set(sources) - constant):
                between.add(name)
    return between, layers


def _reader(cfg: CfgNode, prepare: Prepare) -> Callable[[str], np.ndarray]:
    resize = Preparation(cfg)

    def read(path: str) -> np.ndarray:
        image = resize(read_image(path, cfg.INPUT.FORMAT))["image"]
        return prepare(image.permute(1, 2, 0).contiguous().numpy())[0]

    return read


# ---- AP ----


def measure_ap(
    cfg: CfgNode, dataset: str, detector: Detector, prepare: Prepare, limit: int | None = None
) -> Dict[str, float]:
    """Measure the AP of a file.

    Args:
        cfg (CfgNode): of the detector.
        dataset (str): its registered name.
        detector (callable): from a uint8 image (H, W, 3) to its :class:`Detections`.
        prepare (callable): as for :func:`quantize`.
        limit (int or None): number of images, the first ones; all by default.

    Returns:
        dict[str, float]: 0 ... 100, by task; 0 where the evaluator has none.
    """
    loader = itertools.islice(Trainer.build_test_loader(cfg, dataset), limit)
    ids = []
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Trainer.build_evaluator(cfg, dataset, folder)
        evaluator.reset()
        for (record,) in loader:
            image = record["image"].permute(1, 2, 0).contiguous().numpy()
            image, size = prepare(image)
            instances = _instances(detector(image), size)
            instances = detector_postprocess(instances, record["height"], record["width"])
            evaluator.process([record], [{"instances": instances}])
            ids.append(record["image_id"])
        results = evaluator.evaluate(ids) if limit else evaluator.evaluate()
    aps = {task: figures["AP"] for task, figures in results.items()}
    return {task: 0.0 if math.isnan(ap) else ap for task, ap in aps.items()}


def _instances(found: Detections, size: Tuple[int, int]) -> Instances:
    instances = Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(found.boxes)),
        scores=torch.from_numpy(found.scores),
        pred_classes=torch.from_numpy(found.classes),
    )
    if found.masks is not None:
        instances.pred_masks = torch.from_numpy(found.masks)[:, None]
    return instances


def _costs(cfg: CfgNode, dataset: str, model: Any, layers: List[str], prepare: Prepare) -> str:
    """Name the layers whose return to float32 raises the AP most, on the first images.

    Groups of consecutive layers are tried first, then each layer of the best group.
    """
    if not isinstance(Trainer.build_evaluator(cfg, dataset), COCOEvaluator):
        return ""

    def gain(group: Sequence[str]) -> float:
        detector = run_openvino_model(_in_float(model, group))
        return sum(measure_ap(cfg, dataset, detector, prepare, _NUM_COMPARED).values()) - base

    base = 0.0
    base = gain([])
    groups = [layers[i : i + _GROUP] for i in range(0, len(layers), _GROUP)]
    best = max(groups, key=gain)
    gains = sorted(((gain([layer]), layer) for layer in best), reverse=True)[:_NUM_NAMED]
    named = ", ".join(f"{layer_name(layer)} ({value:+.2f})" for value, layer in gains)
    return f"; these layers cost most, kept with --keep-float: {named}"


def _in_float(model: Any, layers: Sequence[str]) -> Any:
    """A copy of a quantized model where layers take inputs in float32; NNCF has rounded weights."""
    model = model.clone()
    for op in model.get_ops():
        if op.get_friendly_name() in layers:
            for value in op.inputs():
                source = value.get_source_output().get_node()
                if source.get_type_name() == "FakeQuantize":
                    value.replace_source_output(source.input_value(0))
    return model
