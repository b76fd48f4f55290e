"""What the results of a run depend on, to tell whether another run may go on with it."""

import hashlib
from typing import Any, Dict, Iterator, List, Tuple

from detectron2.config import CfgNode

from ....checkpoint.locating import locate
from ....data.cache.fingerprint import fingerprint
from ....errors import UserError

# Of the config, what a prediction depends on; where it runs and where its weights are is no part.
_SECTIONS = ("MODEL", "INPUT")
_LEFT_OUT = ("MODEL.DEVICE", "MODEL.WEIGHTS")
_WEIGHTS, _IMAGES = "the weights", "the images"


def settings_of(cfg: CfgNode, dtype: str) -> Dict[str, Any]:
    """The settings of a model.

    Args:
        cfg (CfgNode): of :func:`rsb_d2.predictor.load_predict_config`.
        dtype (str): as of ``--dtype``.

    Returns:
        dict: of JSON's types, what a user is likeliest to have changed first.

    Raises:
        UserError: if the weights are not there.
    """
    file = fingerprint(locate(cfg.MODEL.WEIGHTS))
    return {
        _WEIGHTS: f"{file['size']} bytes, {file['sample'][:16]}",
        "--threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        "--dtype": dtype,
        **{name: str(value) for name, value in _flat(cfg) if name not in _LEFT_OUT},
        "TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE,
    }


def _flat(cfg: CfgNode) -> Iterator[Tuple[str, Any]]:
    def walk(node: CfgNode, prefix: str) -> Iterator[Tuple[str, Any]]:
        for key, value in sorted(node.items()):
            name = f"{prefix}.{key}"
            yield from walk(value, name) if isinstance(value, CfgNode) else [(name, value)]

    for section in _SECTIONS:
        yield from walk(cfg[section], section)


def images_setting(images: List[Tuple[str, str]]) -> Dict[str, str]:
    """The setting that stands for a list of images.

    Args:
        images (list[tuple[str, str]]): paths and the names of their outputs.
    """
    digest = hashlib.sha256()
    for path, name in images:
        digest.update(f"{path}\0{name}\0".encode("utf-8", "surrogateescape"))
    return {_IMAGES: f"{len(images)} of them, {digest.hexdigest()[:16]}"}


def check_settings(before: Dict[str, Any], now: Dict[str, Any], folder: str) -> None:
    """See that a run can be gone on with.

    Args:
        before, now (dict): settings of the run, and of the command.
        folder (str): of its output, for the message.

    Raises:
        UserError: naming the first that differs.
    """
    for name in {**now, **before}:
        a, b = before.get(name), now.get(name)
        if a != b:
            what = f"{name} {a}, not {b}"
            if name in (_WEIGHTS, _IMAGES):
                what = f"other {name.split()[1]} ({a}; these are {b})"
            raise UserError(
                f"--resume: the run in {folder} was begun with {what}; give it the same, or leave "
                "--resume out to begin anew"
            )
