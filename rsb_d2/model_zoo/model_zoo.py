"""The four functions of ``detectron2.model_zoo``, for this project's configs and weights."""

import builtins
import logging
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import List, NamedTuple

import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from timm.models import list_pretrained
from torch import nn

from ..checkpoint import Checkpointer, locate
from ..checkpoint.sources import URLS, is_rsb
from ..config.defaults import default_config
from ..errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

# A wheel has the configs inside the package, a checkout next to it.
_CONFIG_DIRS = (Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs")


class ModelZooError(UserError, RuntimeError):
    """No such config, or no weights for it; Detectron2's zoo raises a ``RuntimeError``."""


def config_dir() -> Path:
    """The folder of the configs, of an installed package or of a checkout.

    Raises:
        ModelZooError: if there is none.
    """
    for folder in _CONFIG_DIRS:
        if folder.is_dir():
            return folder
    raise ModelZooError(
        f"the configs are neither in {_CONFIG_DIRS[0]} nor in {_CONFIG_DIRS[1]}: install rsb_d2 "
        "again"
    )


def config_names() -> List[str]:
    """The names of all configs, without ``.yaml`` and in alphabetical order; no ``Base-*``."""
    names = sorted(path.stem for path in config_dir().glob("*.yaml"))
    return [name for name in names if not name.startswith("Base-")]


def pretraining_names() -> List[str]:
    """The same of the pretrainings, ``"pretrain/resnet50_rsb_a1"`` and so on."""
    names = sorted(f"pretrain/{path.stem}" for path in config_dir().glob("pretrain/*.yaml"))
    return [name for name in names if "/Base-" not in name]


def get_config_file(config_path: str) -> str:
    """The path of a config's file.

    Args:
        config_path (str): name of the config, ``"frcnn_rsb_1x.yaml"`` or
            ``"pretrain/resnet50_rsb_a3.yaml"``; ``.yaml`` can be left out.

    Returns:
        str: the path.

    Raises:
        ModelZooError: if there is no such config.
    """
    path = config_dir() / f"{_name(config_path)}.yaml"
    if not path.is_file():
        known = [*config_names(), *pretraining_names()]
        hint = did_you_mean(_name(config_path), known, "see rsb_d2.model_zoo.list()", cutoff=0.4)
        raise ModelZooError(f"{config_path} is not available in the model zoo; {hint}")
    return str(path)


def find_config(config_file: str) -> str:
    """Return the path of a config that is a file or a name in the model zoo; a file comes first.

    Args:
        config_file (str): as on a command line; returned unchanged if it is neither.
    """
    if config_file and not os.path.isfile(os.path.expanduser(config_file)):
        with suppress(ModelZooError):
            return get_config_file(config_file)
    return config_file


def get_checkpoint_url(config_path: str) -> str:
    """The address of the published weights of a config.

    Args:
        config_path (str): as for :func:`get_config_file`.

    Returns:
        str: the address; the file is of OpenMMLab or torchvision, which
            :class:`rsb_d2.Checkpointer` reads.

    Raises:
        ModelZooError: if there are no published weights for it.
    """
    name = _name(config_path)
    if name not in URLS:
        raise ModelZooError(
            f"there are no published weights for {config_path}, only for {', '.join(URLS)}"
        )
    return URLS[name]


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """A config of the zoo.

    Args:
        config_path (str): as for :func:`get_config_file`.
        trained (bool): set ``MODEL.WEIGHTS`` to the published detector; otherwise it
            stays the start of the config's training, timm's weights of the backbone.

    Returns:
        CfgNode: not frozen.

    Raises:
        ModelZooError: if there is no such config, or no weights for it.
    """
    cfg = default_config()
    cfg.merge_from_file(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model of the zoo, with its weights.

    Args:
        config_path (str): as for :func:`get_config_file`.
        trained (bool): load the published detector; otherwise timm's weights of the backbone,
            which the training starts from. Where those cannot be fetched, as without a network,
            a warning says so, and the model has random weights.
        device (str or None): instead of ``MODEL.DEVICE``; ``"cpu"`` by default if there is no GPU.

    Returns:
        nn.Module: in training mode.

    Raises:
        UserError: if there is no such config or no weights for it, or if the published weights
            cannot be fetched.

    Example::

        from rsb_d2 import model_zoo
        model = model_zoo.get("frcnn_rsb_1x.yaml", trained=True)
    """
    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    if not trained and not _can_be_fetched(cfg.MODEL.WEIGHTS):
        cfg.MODEL.WEIGHTS = ""
    model = build_model(cfg)
    Checkpointer(model, save_to_disk=False).load(cfg.MODEL.WEIGHTS)
    return model


def _can_be_fetched(weights: str) -> bool:
    try:
        locate(weights)
    except UserError as e:
        logger.warning(f"The model has RANDOM weights, also in its backbone: {e}")
        return False
    return True


def _name(config_path: str) -> str:
    return config_path[: -len(".yaml")] if config_path.endswith(".yaml") else config_path


# ---- tables ----


class Table(builtins.list):
    """A list of named tuples that prints as a table; unknown values are blank."""

    def __str__(self) -> str:
        if not self:
            return ""
        headers = self[0]._fields
        return tabulate(self, headers, tablefmt="github", floatfmt=".1f", missingval="")


class Config(NamedTuple):
    """A config of the zoo; the figures are published ones, ``None`` where there are none.

    Args:
        name (str): of the config, without ``.yaml``.
        box_ap (float or None): on COCO val2017.
        mask_ap (float or None): on COCO val2017.
        train_memory_gb (float or None): per GPU with 2 images.
        weights (str or None): the published detector, for ``MODEL.WEIGHTS``.
    """

    name: str
    box_ap: float | None = None
    mask_ap: float | None = None
    train_memory_gb: float | None = None
    weights: str | None = None


class RsbWeights(NamedTuple):
    """Weights of timm that were trained with a recipe of "ResNet strikes back".

    Args:
        weights (str): for ``MODEL.WEIGHTS``.
        architecture (str): for ``MODEL.TIMM.NAME``.
        recipe (str): as in timm's tag: ``"a1"``.
        params_m (float): parameters of the complete classification model, in millions.
    """

    weights: str
    architecture: str
    recipe: str
    params_m: float


# COCO val2017: box AP, mask AP, training memory. Sources: metafile.yml in MMDetection's folders of
# configs (resnet_strikes_back, faster_rcnn, ...), and the meta data of torchvision's weights
# (FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta, ...), which do not include the memory.
_PUBLISHED = {
    "frcnn_rsb_1x": (40.8, None, 3.9),
    "mask_rcnn_rsb_1x": (41.2, 38.2, 4.5),
    "cascade_mask_rcnn_rsb_1x": (44.8, 39.9, 6.2),
    "retinanet_rsb_1x": (39.0, None, 3.8),
    "frcnn_tv2_1x": (40.2, None, 4.0),
    "frcnn_tv_3x": (40.3, None, 3.9),
    "mask_rcnn_tv_3x": (40.9, 37.1, 4.1),
    "cascade_mask_rcnn_tv_3x": (44.3, 38.5, 5.9),
    "retinanet_tv_3x": (39.5, None, None),
    "frcnn_tv_resnet101_3x": (41.8, None, 5.8),
    "frcnn_torchvision_v2": (46.7, None, None),
    "mask_rcnn_torchvision_v2": (47.4, 41.8, None),
    "retinanet_torchvision_v2": (41.5, None, None),
    "frcnn_torchvision": (37.0, None, None),
    "mask_rcnn_torchvision": (37.9, 34.6, None),
    "keypoint_rcnn_torchvision": (54.6, None, None),
    "retinanet_torchvision": (36.4, None, None),
}


def published_memory(cfg: CfgNode) -> float | None:
    """Return the published training memory of a config's model, in GB for 2 images on a GPU."""
    if cfg.MODEL.TIMM.NAME.partition(".")[0] != "resnet50" or cfg.INPUT.MIN_SIZE_TRAIN[-1] != 800:
        return None
    for name, (_, _, memory) in _PUBLISHED.items():
        if name.endswith("_rsb_1x") and _kind(get_config(name)) == _kind(cfg):
            return memory
    return None


def _kind(cfg: CfgNode) -> tuple:
    """The properties that, with backbone and images, determine a detector's training memory."""
    architecture = cfg.MODEL.META_ARCHITECTURE.removeprefix("OpenMMLab")
    return architecture, cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON


def list() -> Table:
    """The configs of the zoo with their published results.

    Returns:
        Table: of :class:`Config`, those with published results first.
    """
    configs = []
    for name in (*_PUBLISHED, *(n for n in config_names() if n not in _PUBLISHED)):
        weights = f"zoo://{name}" if name in URLS else None
        configs.append(Config(name, *_PUBLISHED.get(name, (None, None, None)), weights))
    return Table(configs)


def rsb_weights() -> Table:
    """timm's weights that its own ``paper_ids`` attribute to "ResNet strikes back".

    Returns:
        Table: of :class:`RsbWeights`, in timm's order.
    """
    rows = []
    for name in list_pretrained():
        if not is_rsb(name):
            continue
        architecture, _, tag = name.partition(".")
        params_m = round(_num_parameters(architecture) / 1e6, 1)
        recipe = tag.removesuffix("_in1k")
        rows.append(RsbWeights(f"timm://{name}", architecture, recipe, params_m))
    return Table(rows)


@cache
def _num_parameters(architecture: str) -> int:
    with torch.device("meta"):
        model = timm.create_model(architecture)
    return sum(p.numel() for p in model.parameters())
