"""A trained detector: loading its config and weights, and detecting objects in images."""

import difflib
import os
from contextlib import nullcontext
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from . import model_zoo
from .checkpoint import Checkpointer
from .checkpoint.sources import fetch_hub
from .config.loading import load_config
from .data.class_names import ClassNames, find_class_names
from .data.images import reads_partial_images
from .errors import UserError
from .evaluation.coco_evaluation import with_own_keypoints
from .extensions import ACCELERATION, TASKS
from .memory import send_images
from .registration import architecture_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Weights of a run in the order of preference.
_RUN_WEIGHTS = ("model_best.pth", "model_final.pth")


def load_predict_config(
    config_file: str = "",
    weights: str = "",
    run: str = "",
    opts: List[str] = (),
    device: str = "",
    threshold: float | None = None,
) -> CfgNode:
    """Load the config of a trained model from command line arguments.

    Args:
        config_file (str): path of a YAML file, or a name in the model zoo; ``""`` for the config
            of ``run``, or of weights named ``zoo://NAME`` or ``hf://OWNER/NAME``.
        weights (str): as ``MODEL.WEIGHTS``; ``""`` for the weights of the run or the config.
        run (str): ``OUTPUT_DIR`` of a training: its ``config.yaml``, and its best weights or
            otherwise its last ones.
        opts (list[str]): ``KEY VALUE`` pairs.
        device (str): ``"cpu"``, ``"cuda"``, ``"cuda:1"``; ``""`` for the device of the config, or
            the CPU if there is no GPU.
        threshold (float or None): minimum score of a detection, 0 ... 1; ``None`` for the value of
            the config.

    Returns:
        CfgNode: not frozen, with ``MODEL.WEIGHTS``.

    Raises:
        UserError: if a file does not exist, or an argument is invalid.
    """
    run, config_file, weights = map(os.path.expanduser, (run, config_file, weights))
    if run:
        config_file, weights = _find_run(run, config_file, weights)
    if not config_file and weights.startswith("zoo://"):
        config_file = weights[len("zoo://") :]
    if not config_file and weights.startswith("hf://"):
        # By its commit, so that the weights are of the same one.
        weights, config_file, _ = fetch_hub(weights)
    if not config_file:
        raise UserError("name a config with --config-file, or the folder of a training with --run")
    if not os.path.isfile(config_file) and os.sep not in config_file:
        try:
            config_file = model_zoo.get_config_file(config_file)
        except UserError as e:
            raise UserError(f"--config-file: there is no such file, and {e}") from None
    cfg = load_config(config_file, list(opts))
    if architecture_name(cfg) in TASKS:
        raise UserError(
            f"{config_file} is of an image classifier, which finds no objects; name a detector's "
            "config, trained from its weights (docs/pretraining.md)"
        )
    cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
    if not cfg.MODEL.WEIGHTS:
        raise UserError(f"{config_file} has no MODEL.WEIGHTS: name the weights with --weights")
    cfg.MODEL.DEVICE = _check_device(device, cfg.MODEL.DEVICE)
    if threshold is not None:
        _set_threshold(cfg, threshold)
    return cfg


def _find_run(run: str, config_file: str, weights: str) -> Tuple[str, str]:
    if not os.path.isdir(run):
        raise UserError(f"--run: there is no folder {run}")
    config_file = config_file or os.path.join(run, "config.yaml")
    if not os.path.isfile(config_file):
        raise UserError(
            f"--run: {run} has no config.yaml, so it is not the OUTPUT_DIR of a training"
        )
    if weights:
        return config_file, weights
    names = list(_RUN_WEIGHTS)
    try:
        with open(os.path.join(run, "last_checkpoint")) as f:
            names.append(f.read().strip())
    except OSError:
        pass
    for name in names:
        path = os.path.join(run, name)
        if name and os.path.isfile(path):
            return config_file, path
    raise UserError(f"--run: {run} has no checkpoint yet: {' or '.join(_RUN_WEIGHTS)}")


def _check_device(device: str, configured: str) -> str:
    has_gpu = torch.cuda.is_available()
    if not device:
        return configured if has_gpu or not configured.startswith("cuda") else "cpu"
    try:
        parsed = torch.device(device)
    except RuntimeError:
        near = difflib.get_close_matches(device, ["cpu", "cuda"], n=1) or ["cpu", "cuda"]
        raise UserError(f"--device is {device!r}; write {' or '.join(near)}") from None
    if parsed.type == "cuda" and not (has_gpu and (parsed.index or 0) < torch.cuda.device_count()):
        raise UserError(f"--device is {device}, but torch finds no such GPU; write cpu")
    return device


def _set_threshold(cfg: CfgNode, threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold is {threshold}; a score is between 0 and 1")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = threshold


def load_detector(cfg: CfgNode) -> Tuple[nn.Module, ClassNames]:
    """Build a detector, load all its weights, and find its class names.

    Args:
        cfg (CfgNode): of :func:`load_predict_config`.

    Returns:
        nn.Module, ClassNames: the model in evaluation mode, on ``MODEL.DEVICE``.

    Raises:
        UserError: if the weights do not exist, or do not contain the complete model.
    """
    model = build_model(cfg).eval()
    checkpointer = Checkpointer(model)
    checkpoint = checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    _check_complete(cfg, checkpointer)
    return model, find_class_names(cfg, checkpoint, num_classes(model))


def num_classes(model: nn.Module) -> int:
    """Return the number of classes of a detector."""
    return getattr(model, "roi_heads", model).num_classes


def _check_complete(cfg: CfgNode, checkpointer: Checkpointer) -> None:
    report = checkpointer.report
    if report is None:
        return
    if report.classes:
        there, here = report.classes
        key = "RETINANET" if hasattr(checkpointer.model, "head") else "ROI_HEADS"
        raise UserError(
            f"{cfg.MODEL.WEIGHTS} is of a model with {there} classes, but MODEL.{key}.NUM_CLASSES "
            f"is {here}: use the config of its training"
        )
    if report.initial:
        raise UserError(
            f"{cfg.MODEL.WEIGHTS} is not a complete detector of this config: "
            f"{len(report.initial)} tensors are missing, such as {report.initial[0]}; name the "
            "weights of a trained one with --weights"
        )


class Preparation:
    """Resizes images as for evaluation, without a model, so that worker processes can use it.

    Args:
        cfg (CfgNode): the ``INPUT`` keys are read.
    """

    def __init__(self, cfg: CfgNode):
        self.input_format = cfg.INPUT.FORMAT
        self.partial = reads_partial_images(cfg)
        self._resize = T.ResizeShortestEdge(
            [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST
        )

    def __call__(self, image: np.ndarray) -> Dict[str, Any]:
        """Resize an image; see :meth:`Predictor.prepare`."""
        height, width = image.shape[:2]
        resized = self._resize.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}

    def size(self, height: int, width: int) -> Tuple[int, int]:
        """Return the height and width to which an image of this height and width is resized."""
        shortest, longest = self._resize.short_edge_length[0], self._resize.max_size
        if not shortest:
            return height, width
        return T.ResizeShortestEdge.get_output_shape(height, width, shortest, longest)


class Predictor:
    """Runs a detector on images of any size, resized as for evaluation.

    Args:
        cfg (CfgNode): the ``INPUT`` keys are read.
        model (nn.Module): in evaluation mode.
        classes (ClassNames): of the model.
        dtype (str): ``"float32"``, or ``"bfloat16"`` for automatic mixed precision. Use
            ``"float32"`` for a model of :func:`rsb_d2.optimize_for_inference`, which has its own
            precision.

    Raises:
        UserError: for another ``dtype``.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, classes: ClassNames, dtype: str = "float32"):
        _check_dtype(dtype)
        self.model = model
        self.classes = classes
        self.preparation = Preparation(cfg)
        self.input_format = self.preparation.input_format
        self._dtype = DTYPES[dtype]

    @classmethod
    def from_config(cls, cfg: CfgNode, dtype: str = "float32") -> "Predictor":
        """Load the model of a config, and optimize it for inference.

        Args:
            cfg (CfgNode): see :func:`load_detector`.
            dtype (str): ``"float32"`` or ``"bfloat16"``.

        Raises:
            UserError: see :func:`load_detector`; also for another ``dtype``.
        """
        _check_dtype(dtype)
        model, classes = load_detector(cfg)
        optimize = ACCELERATION.get("optimize_for_inference")
        return cls(cfg, optimize(model, DTYPES[dtype], to_cpu=True), classes)

    def prepare(self, image: np.ndarray) -> Dict[str, Any]:
        """Resize an image as for evaluation: uint8 (H, W, 3), channels as in ``INPUT.FORMAT``.

        Returns:
            dict: one image of the list that a Detectron2 model takes.
        """
        return self.preparation(image)

    def __call__(self, batch: List[Dict[str, Any]]) -> List[Instances]:
        """Detect objects.

        Args:
            batch (list[dict]): results of :meth:`prepare` for one or more images. Images of a
                batch are padded to the same size, which changes scores in the third decimal.

        Returns:
            list[Instances]: of each image, on the CPU, in pixels of the original image:
            ``pred_boxes``, ``scores``, ``pred_classes``, and ``pred_masks`` of models with masks.
        """
        return self.start(batch)()

    def start(self, batch: List[Dict[str, Any]]) -> Callable[[], List[Instances]]:
        """Start the detection of objects; a GPU computes while the caller does other things.

        Args:
            batch (list[dict]): as of a call.

        Returns:
            callable: returns the result of a call, for which it waits. Other batches may be started
            before. Only models of :func:`rsb_d2.optimize_for_inference` with ``to_cpu`` compute
            after the start.
        """
        device, autocast = self.model.device, nullcontext()
        batch = send_images(batch, device)
        if self._dtype != torch.float32:
            autocast = torch.autocast(device.type, self._dtype)
        start = getattr(getattr(self.model, "forward", None), "start", None)
        with torch.no_grad(), autocast:
            outputs = self.model(batch) if start is None else start(batch)

        def finish() -> List[Instances]:
            with torch.no_grad(), autocast:
                found = outputs if start is None else outputs()
            instances = [output["instances"] for output in found]
            if any(each.scores.is_cuda for each in instances):
                instances = [_to_cpu(each) for each in instances]
                torch.cuda.current_stream(device).synchronize()
            return [_to_float32(each) for each in instances]

        return finish

    def to_coco(self, instances: Instances, image_id: int) -> List[Dict[str, Any]]:
        """Convert detections to entries of a COCO results file.

        Args:
            instances (Instances): of one image.
            image_id (int): of the image.

        Returns:
            list[dict]: ``image_id``, ``category_id`` as in the annotation file, ``bbox`` (x, y,
            width, height in pixels), ``score``, and of masks ``segmentation`` as RLE.
        """
        return to_coco(instances, image_id, self.classes.ids)


def to_coco(instances: Instances, image_id: int, class_ids: Sequence[int]) -> List[Dict[str, Any]]:
    """Convert detections as :meth:`Predictor.to_coco` does, with the category id of each class."""
    results = instances_to_coco_json(with_own_keypoints(instances), image_id)
    for result in results:
        result["category_id"] = class_ids[result["category_id"]]
    return results


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; write one of {', '.join(DTYPES)}")


def _to_cpu(instances: Instances) -> Instances:
    """Start copying to the CPU; the caller waits once for the copies of all images."""
    fields = instances.get_fields().items()
    return Instances(instances.image_size, **{name: _field_to_cpu(v) for name, v in fields})


def _field_to_cpu(value: Any) -> Any:
    if isinstance(value, Boxes):
        return Boxes(value.tensor.to("cpu", non_blocking=True))
    if isinstance(value, torch.Tensor):
        return value.to("cpu", non_blocking=True)
    return value.to("cpu")


def _to_float32(instances: Instances) -> Instances:
    instances.scores = instances.scores.float()
    instances.pred_boxes.tensor = instances.pred_boxes.tensor.float()
    return instances
