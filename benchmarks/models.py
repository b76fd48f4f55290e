"""Stock Detectron2 and this project with the same weights, and images for both."""

from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Tuple

import numpy as np
import torch
from detectron2 import model_zoo as stock_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from torch import nn

from rsb_d2 import model_zoo
from rsb_d2.checkpoint.convert import convert

LOW_RATE = 1e-8  # of a training in which the weights, and with them the work, stay the same
_OBJECTS = 7  # in an image, as in COCO
# Standard deviations of the layers whose outputs are logits or box deltas, so that scores spread
# over 0 to 1; all other layers keep the scale of their input.
_STD = {
    "rpn_head.objectness_logits": 0.01,
    "rpn_head.anchor_deltas": 0.01,
    "box_predictor.cls_score": 0.02,
    "box_predictor.bbox_pred": 0.01,
}


def our_config(device: str = "cpu") -> CfgNode:
    """Return the config of Faster R-CNN with ResNet-50 and FPN, without weights."""
    cfg = model_zoo.get_config("frcnn_rsb_1x.yaml")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", device
    return cfg


def stock_config(device: str = "cpu") -> CfgNode:
    """Return the config of the same detector in Detectron2's zoo, with its own backbone."""
    cfg, ours = get_cfg(), our_config(device)
    cfg.merge_from_file(stock_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False  # as in timm's ResNet
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = ours.MODEL.PIXEL_MEAN, ours.MODEL.PIXEL_STD
    cfg.INPUT.FORMAT = ours.INPUT.FORMAT
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", device
    return cfg


def build_ours(device: str = "cpu") -> nn.Module:
    """Build this project's detector with seeded weights, in evaluation mode."""
    model = build_model(our_config(device)).eval()
    seed_weights(model)
    return model


def build_stock(device: str = "cpu") -> nn.Module:
    """Build stock Detectron2's detector with the weights of :func:`build_ours`."""
    model = build_model(stock_config(device)).eval()
    model.load_state_dict(to_stock(build_ours().state_dict()))
    return model


def to_stock(weights: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Rename a detector's weights as in stock Detectron2."""
    prefix = "backbone.bottom_up."
    backbone = convert(weights, "detectron2", "resnet50").weights
    # Detectron2's FrozenBatchNorm2d has no counter.
    backbone = {n: t for n, t in backbone.items() if not n.endswith("num_batches_tracked")}
    others = {n: t for n, t in weights.items() if not n.startswith(prefix)}
    return {**{prefix + n: t for n, t in backbone.items()}, **others}


def seed_weights(model: nn.Module, seed: int = 0) -> None:
    """Give a Faster R-CNN weights with 1,000 proposals and 100 detections in every image.

    The numbers are NumPy's, which are the same in all versions of torch.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # neither a norm nor a bias
                layer = ".".join(name.split(".")[-3:-1])
                std = _STD.get(layer, (2 / parameter[0].numel()) ** 0.5)
                values = rng.normal(0, std, parameter.shape).astype(np.float32)
                parameter.copy_(torch.from_numpy(values))


def make_images(size: Tuple[int, int], number: int, seed: int = 0) -> List[dict]:
    """Make images with structure at all scales, as a detector takes them."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(number):
        layers = [
            nn.functional.interpolate(
                torch.from_numpy(rng.normal(0, 40, (1, 3, cells, cells)).astype(np.float32)),
                size=size,
                mode="bilinear",
            )
            for cells in (4, 16, 64, 256)
        ]
        image = (128 + sum(layers)[0]).clamp(0, 255).to(torch.uint8)
        images.append({"image": image, "height": size[0], "width": size[1]})
    return images


def make_objects(size: Tuple[int, int], seed: int) -> Instances:
    """Make the boxes and classes of an image."""
    rng = np.random.default_rng(seed)
    height, width = size
    corner = rng.uniform(0, 0.6, (_OBJECTS, 2)) * [width, height]
    far = corner + rng.uniform(0.05, 0.4, (_OBJECTS, 2)) * [width, height]
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(np.concatenate([corner, far], axis=1)).float())
    instances.gt_classes = torch.tensor(rng.integers(0, 80, _OBJECTS))
    return instances


def write_images(pattern: str, size: Tuple[int, int], number: int) -> List[dict]:
    """Write JPEG files, with their numbers in place of ``{}``; return their records."""
    records = []
    for i, image in enumerate(make_images(size, number)):
        path, objects = pattern.format(i), make_objects(size, i)
        Image.fromarray(image["image"].permute(1, 2, 0).numpy()).save(path, quality=95)
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "iscrowd": 0}
            for box, label in zip(objects.gt_boxes.tensor.tolist(), objects.gt_classes.tolist())
        ]
        record = {"file_name": path, "height": size[0], "width": size[1], "image_id": i}
        records.append({**record, "annotations": annotations})
    return records


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Compute float32 on a GPU in TF32, or not, until the block ends."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = enabled
        yield
    finally:
        for switch, value in zip(switches, before):
            switch.allow_tf32 = value


class Step:
    """A step of training in one precision: calling it runs forward, backward and the optimizer."""

    def __init__(
        self,
        losses: Callable[[], Dict[str, torch.Tensor]],
        optimizer: torch.optim.Optimizer,
        device: str,
        dtype: torch.dtype,
        with_tf32: bool,
    ):
        self._losses, self._optimizer, self._with_tf32 = losses, optimizer, with_tf32
        kind = torch.device(device).type
        self._autocast = torch.autocast(kind, dtype, dtype != torch.float32)
        self._scaler = torch.amp.GradScaler(kind, enabled=dtype == torch.float16)

    def forward(self) -> Dict[str, torch.Tensor]:
        with tf32(self._with_tf32), self._autocast:
            return self._losses()

    def backward(self) -> None:
        self._optimizer.zero_grad()  # as in the trainers, before the forward pass
        loss = sum(self.forward().values())
        with tf32(self._with_tf32):
            self._scaler.scale(loss).backward()

    def __call__(self) -> None:
        self.backward()
        with tf32(self._with_tf32):
            self._scaler.step(self._optimizer)
        self._scaler.update()
