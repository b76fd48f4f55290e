"""The four functions of ``detectron2.model_zoo``, for this project's configs and weights."""

import difflib
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import List

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint import Checkpointer, locate
from ..checkpoint.sources import URLS
from ..config import add_rsb_config
from ..errors import UserError

logger = logging.getLogger(__name__)

# A wheel has the configs inside the package, a checkout beside it.
_CONFIG_DIRS = (Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs")


class ModelZooError(UserError, RuntimeError):
    """What Detectron2's zoo raises as a ``RuntimeError``: no such config, or no weights for it."""


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
        "anew"
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
        near = difflib.get_close_matches(_name(config_path), known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "see rsb_d2.model_zoo.list()"
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
        trained (bool): set ``MODEL.WEIGHTS`` to the published detector; otherwise it is what the
            config starts its training from, timm's weights of the backbone.

    Returns:
        CfgNode: not frozen.

    Raises:
        ModelZooError: if there is no such config, or no weights for it.
    """
    cfg = get_cfg()
    add_rsb_config(cfg)
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
        device (str or None): in the place of ``MODEL.DEVICE``; without a GPU ``"cpu"`` by itself.

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
