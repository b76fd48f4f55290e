"""zoo://NAME: the published detectors, from OpenMMLab's server."""

import contextlib
import difflib
import hashlib
import logging
import os
import re
from typing import IO
from urllib.parse import urlparse

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir

from ..errors import UserError
from ..files import escape_address, find_disk_error

logger = logging.getLogger(__name__)

PREFIX = "zoo://"
SERVER = "https://download.openmmlab.com/"

_FOLDER = f"{SERVER}mmdetection/v2.0/resnet_strikes_back/"

# The published detector of each config that has one; the names of the files end in the first 8 hex
# digits of their sha256.
URLS = {
    "frcnn_rsb_1x": f"{_FOLDER}faster_rcnn_r50_fpn_rsb-pretrain_1x_coco/"
    "faster_rcnn_r50_fpn_rsb-pretrain_1x_coco_20220113_162229-32ae82a9.pth",
    "mask_rcnn_rsb_1x": f"{_FOLDER}mask_rcnn_r50_fpn_rsb-pretrain_1x_coco/"
    "mask_rcnn_r50_fpn_rsb-pretrain_1x_coco_20220113_174054-06ce8ba0.pth",
    "cascade_mask_rcnn_rsb_1x": f"{_FOLDER}cascade_mask_rcnn_r50_fpn_rsb-pretrain_1x_coco/"
    "cascade_mask_rcnn_r50_fpn_rsb-pretrain_1x_coco_20220113_193636-8b9ad50f.pth",
    "retinanet_rsb_1x": f"{_FOLDER}retinanet_r50_fpn_rsb-pretrain_1x_coco/"
    "retinanet_r50_fpn_rsb-pretrain_1x_coco_20220113_175432-bd24aae9.pth",
}

_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth$")


class ZooHandler(PathHandler):
    """Resolves ``zoo://NAME``, NAME being a config of the published table: ``frcnn_rsb_1x``."""

    def _get_supported_prefixes(self):
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        self._check_kwargs(kwargs)
        return fetch(path, force)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs) -> IO:
        self._check_kwargs(kwargs)
        if mode not in ("r", "rb"):
            raise UserError(f"{path} can be read only, not opened with mode {mode!r}")
        return open(fetch(path), mode, buffering)

    def _isfile(self, path: str, **kwargs) -> bool:
        self._check_kwargs(kwargs)
        return path[len(PREFIX) :] in URLS

    _exists = _isfile

    def _isdir(self, path: str, **kwargs) -> bool:
        self._check_kwargs(kwargs)
        return False


def register() -> None:
    """Make ``zoo://`` a path of Detectron2's ``PathManager``."""
    PathManager.register_handler(ZooHandler(), allow_override=True)


def is_published(path: str) -> bool:
    """Whether :func:`fetch` takes a path."""
    return path.startswith((PREFIX, SERVER))


def fetch(path: str, force: bool = False) -> str:
    """Find a published file in the cache of Detectron2's ``PathManager``, or download it there.

    Args:
        path (str): ``zoo://NAME``, or an address on OpenMMLab's server.
        force (bool): download it again.

    Returns:
        str: the local file; its sha256 begins with the digits at the end of its name.

    Raises:
        UserError: if there is no such name, if the server cannot be reached, or if the file is
            damaged.
    """
    url = _url(path[len(PREFIX) :]) if path.startswith(PREFIX) else escape_address(path)
    cached = _cached_path(url)
    if force and os.path.isfile(cached):
        os.remove(cached)  # iopath's own "force" takes what is there
    was_cached = os.path.isfile(cached)
    try:
        local_path = PathManager.get_local_path(url, force=force)
    except Exception as e:  # HTTP, TLS, proxy, disk: each library below has its own
        raise _unreachable(path, url, cached, e) from e
    _check_digest(url, local_path, was_cached)
    return local_path


def _url(name: str) -> str:
    if name in URLS:
        return URLS[name]
    near = difflib.get_close_matches(name, URLS, n=3, cutoff=0.3) or list(URLS)
    raise UserError(
        f"there are no published weights {PREFIX}{name}; did you mean "
        f"{', '.join(PREFIX + n for n in near)}?"
    )


def _cached_path(url: str) -> str:
    """Where iopath's ``HTTPURLHandler`` puts a download."""
    return os.path.join(get_cache_dir(), urlparse(url).path.lstrip("/"))


def _unreachable(path: str, url: str, cached: str, error: Exception) -> UserError:
    disk_error = find_disk_error(error)
    if disk_error is not None:
        return UserError(
            f"{path}: cannot write to the cache {get_cache_dir()}: {disk_error.strerror}; name "
            "another folder in the environment variable FVCORE_CACHE"
        )
    reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
    return UserError(
        f"{path} is not in the cache {get_cache_dir()}, and downloading {url} failed ({reason}). "
        f"By hand: download it where there is a network, and copy it to {cached}, or anywhere "
        "and write MODEL.WEIGHTS path/to/that/file"
    )


def _check_digest(url: str, local_path: str, was_cached: bool) -> None:
    found = _DIGEST_IN_NAME.search(url)
    if not found:
        return
    digest = hashlib.sha256()
    with open(local_path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest().startswith(found[1]):
        return
    damaged = f"its sha256 begins with {digest.hexdigest()[:8]}, not with {found[1]}"
    if was_cached:
        raise UserError(
            f"{local_path} is damaged or another file ({damaged}): delete it, and it is "
            "downloaded again"
        )
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.remove(local_path)
    raise UserError(
        f"the download of {url} was cut off or changed on its way ({damaged}); it was deleted. "
        "Try again, or download it by hand and write MODEL.WEIGHTS path/to/that/file"
    )


register()
