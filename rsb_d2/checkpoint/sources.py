"""Where weights come from: local files, addresses, ``timm://``, ``zoo://`` and ``hf://``.

``timm://NAME`` are the pretrained weights of timm, from the Hugging Face hub; ``zoo://NAME`` are
published detectors and backbones, from the servers of OpenMMLab and PyTorch;
``hf://OWNER/NAME[@REVISION]`` are detectors of this project on the Hugging Face hub, which
``rsb-d2 push`` writes.
"""

import contextlib
import logging
import os
import re
from typing import IO, NamedTuple, Tuple
from urllib.parse import urlparse

import timm
import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, file_lock, get_cache_dir
from timm.models import list_pretrained

from ..errors import UserError, did_you_mean, first
from ..files import escape_address, find_disk_error, sha256_of
from ..modeling import CheckedTimmBackbone, TimmBackbone
from .files import StateDict, read_checkpoint, save_torch
from .loading import add_missing_counters, architecture, match, updated_by_timm

logger = logging.getLogger(__name__)

TIMM = "timm://"
ZOO = "zoo://"
HF = "hf://"
SERVER = "https://download.openmmlab.com/"
TORCHVISION = "https://download.pytorch.org/models/"

# "ResNet strikes back", by which timm marks the weights that were trained with its recipes, and
# its recipes, best first.
RSB_PAPER = "2110.00476"
_RECIPES = ("a1_in1k", "a1h_in1k", "ah_in1k", "c1_in1k")

# Detectron2's own models: by both of its names for them, and where these lead to.
_STOCK = ("detectron2://", "catalog://", "https://dl.fbaipublicfiles.com/detectron2/")

# The files that timm looks for, in this order: a repository has at least one of them.
_FILE_NAMES = ("model.safetensors", "pytorch_model.bin")

# The files of a detector on the hub; the config names the classes.
HUB_WEIGHTS = "model.safetensors"
HUB_CONFIG = "config.yaml"

_FOLDER = f"{SERVER}mmdetection/v2.0/resnet_strikes_back/"
_MMDETECTION = f"{SERVER}mmdetection/v2.0/"
_BACKBONES = f"{SERVER}mmclassification/v0/resnet/"

# The published detector of each config that has one, and OpenMMLab's reproduction of the RSB
# backbones, from which its detectors started. The names of the files end in the first 8 hex digits
# of their sha256.
URLS = {
    "frcnn_rsb_1x": f"{_FOLDER}faster_rcnn_r50_fpn_rsb-pretrain_1x_coco/"
    "faster_rcnn_r50_fpn_rsb-pretrain_1x_coco_20220113_162229-32ae82a9.pth",
    "mask_rcnn_rsb_1x": f"{_FOLDER}mask_rcnn_r50_fpn_rsb-pretrain_1x_coco/"
    "mask_rcnn_r50_fpn_rsb-pretrain_1x_coco_20220113_174054-06ce8ba0.pth",
    "cascade_mask_rcnn_rsb_1x": f"{_FOLDER}cascade_mask_rcnn_r50_fpn_rsb-pretrain_1x_coco/"
    "cascade_mask_rcnn_r50_fpn_rsb-pretrain_1x_coco_20220113_193636-8b9ad50f.pth",
    "retinanet_rsb_1x": f"{_FOLDER}retinanet_r50_fpn_rsb-pretrain_1x_coco/"
    "retinanet_r50_fpn_rsb-pretrain_1x_coco_20220113_175432-bd24aae9.pth",
    "frcnn_tv2_1x": f"{_MMDETECTION}faster_rcnn/faster_rcnn_r50_fpn_tnr-pretrain_1x_coco/"
    "faster_rcnn_r50_fpn_tnr-pretrain_1x_coco_20220320_085147-efedfda4.pth",
    "frcnn_tv_3x": f"{_MMDETECTION}faster_rcnn/faster_rcnn_r50_fpn_mstrain_3x_coco/"
    "faster_rcnn_r50_fpn_mstrain_3x_coco_20210524_110822-e10bd31c.pth",
    "mask_rcnn_tv_3x": f"{_MMDETECTION}mask_rcnn/mask_rcnn_r50_fpn_mstrain-poly_3x_coco/"
    "mask_rcnn_r50_fpn_mstrain-poly_3x_coco_20210524_201154-21b550bb.pth",
    "cascade_mask_rcnn_tv_3x": f"{_MMDETECTION}cascade_rcnn/"
    "cascade_mask_rcnn_r50_fpn_mstrain_3x_coco/"
    "cascade_mask_rcnn_r50_fpn_mstrain_3x_coco_20210628_164719-5bdc3824.pth",
    "retinanet_tv_3x": f"{_MMDETECTION}retinanet/retinanet_r50_fpn_mstrain_3x_coco/"
    "retinanet_r50_fpn_mstrain_3x_coco_20210718_220633-88476508.pth",
    "frcnn_tv_resnet101_3x": f"{_MMDETECTION}faster_rcnn/faster_rcnn_r101_fpn_mstrain_3x_coco/"
    "faster_rcnn_r101_fpn_mstrain_3x_coco_20210524_110822-4d4d2ca8.pth",
    "frcnn_torchvision_v2": f"{TORCHVISION}fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
    "mask_rcnn_torchvision_v2": f"{TORCHVISION}maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
    "retinanet_torchvision_v2": f"{TORCHVISION}retinanet_resnet50_fpn_v2_coco-5905b1c5.pth",
    "frcnn_torchvision": f"{TORCHVISION}fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "mask_rcnn_torchvision": f"{TORCHVISION}maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    "keypoint_rcnn_torchvision": f"{TORCHVISION}keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
    "retinanet_torchvision": f"{TORCHVISION}retinanet_resnet50_fpn_coco-eeacb38b.pth",
    "resnet50_rsb_a1": f"{_BACKBONES}resnet50_8xb256-rsb-a1-600e_in1k_20211228-20e21305.pth",
    "resnet50_rsb_a2": f"{_BACKBONES}resnet50_8xb256-rsb-a2-300e_in1k_20211228-0fd8be6e.pth",
    "resnet50_rsb_a3": f"{_BACKBONES}resnet50_8xb256-rsb-a3-100e_in1k_20211228-3493673c.pth",
}

_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth$")


def locate(path: str) -> str:
    """Find the file of a path as in ``MODEL.WEIGHTS``, and download it if needed.

    Args:
        path (str): a local path, ``timm://NAME``, ``zoo://NAME``, ``hf://OWNER/NAME[@REVISION]``,
            or any other that Detectron2's ``PathManager`` handles: ``https://…``,
            ``detectron2://…``; or ``file://…``.

    Returns:
        str: a local file; for ``timm://`` and ``hf://`` in Hugging Face's cache, for ``zoo://`` in
        Detectron2's.

    Raises:
        UserError: if there is no such file or it cannot be fetched.
    """
    if path.startswith(TIMM):
        return fetch_timm(path[len(TIMM) :])
    if is_published(path):
        return fetch_published(path)
    if path.startswith(HF):
        return fetch_hub(path).weights
    try:
        path_or_address = os.path.expanduser(path.removeprefix("file://"))
        local_path = PathManager.get_local_path(escape_address(path_or_address))
    except UserError:
        raise
    except Exception as e:  # each handler has its own
        raise UserError(f"cannot fetch {path}: {e}") from e
    if os.path.isdir(local_path):
        raise UserError(f"{path} is a folder: name the checkpoint file in it")
    if not os.path.isfile(local_path):
        raise UserError(f"there is no file {path}")
    return local_path


# ---- paths of Detectron2's PathManager ----


class _ReadOnlyHandler(PathHandler):
    """The paths of a scheme, whose files can be read only."""

    PREFIX = ""

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs) -> IO:
        self._check_kwargs(kwargs)
        if mode not in ("r", "rb"):
            raise UserError(f"{path} can be read only, not opened with mode {mode!r}")
        return open(self._get_local_path(path), mode, buffering)

    def _isfile(self, path: str, **kwargs) -> bool:
        self._check_kwargs(kwargs)
        return self.exists_name(path[len(self.PREFIX) :])

    _exists = _isfile

    def _isdir(self, path: str, **kwargs) -> bool:
        self._check_kwargs(kwargs)
        return False

    def exists_name(self, name: str) -> bool:
        """Whether there is a file of this name."""
        raise NotImplementedError


class TimmHubHandler(_ReadOnlyHandler):
    """Resolves ``timm://NAME``, NAME being any pretrained tag of timm, such as resnet50.a1_in1k.

    The local file is one that Detectron2's stock ``DetectionCheckpointer`` loads completely into a
    model with a :class:`TimmBackbone`. It is made once from the file in Hugging Face's cache.
    """

    PREFIX = TIMM

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        self._check_kwargs(kwargs)
        _check_lazy_backbones(path)
        return _file_for_detectron2(path[len(TIMM) :], force)

    def exists_name(self, name: str) -> bool:
        try:
            _pretrained_cfg(name)
        except UserError:
            return False
        return True


class ZooHandler(_ReadOnlyHandler):
    """Resolves ``zoo://NAME``, NAME being a key of :data:`URLS`: ``frcnn_rsb_1x``."""

    PREFIX = ZOO

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        self._check_kwargs(kwargs)
        return fetch_published(path, force)

    def exists_name(self, name: str) -> bool:
        return name in URLS


for _handler in (TimmHubHandler(), ZooHandler()):
    PathManager.register_handler(_handler, allow_override=True)


# ---- timm:// ----


def fetch_timm(name: str, force: bool = False) -> str:
    """Find timm's file of weights in Hugging Face's cache, or download it.

    Several processes download it once, and an interrupted download continues. A file in the cache
    is used without asking the hub, and must have the checksum of its name there.

    Args:
        name (str): a pretrained model of timm, ``"resnet50.a1_in1k"``; without a tag, timm's
            default.
        force (bool): download it again.
    """
    repository, revision = _repository(name)
    path = None if force else _find_in_cache(repository, revision)
    if path is None:
        path = _download(name, repository, revision, force)
    _digest(path)
    return path


def check_architecture(path: str, backbone_name: str) -> None:
    """Check that a ``timm://`` path means weights of the model at hand, and refuse Detectron2's.

    Some other architectures have the same names and shapes and compute something else. Detectron2's
    own models, except torchvision's ResNets, are refused before they are downloaded. Other paths
    pass.
    """
    if not path.startswith(TIMM):
        _refuse_stock_weights(path, backbone_name)
        return
    name = path[len(TIMM) :]
    _pretrained_cfg(name)
    wanted, given = architecture(backbone_name), architecture(name)
    if wanted != given:
        tags = list_pretrained(wanted + ".*")
        example = f"MODEL.WEIGHTS {TIMM}{tags[0]} or " if tags else ""
        raise UserError(
            f"MODEL.WEIGHTS: {path} is of {given}, but MODEL.TIMM.NAME is {backbone_name}; write "
            f"{example}MODEL.TIMM.NAME {given}"
        )


def recommended_weights(name: str) -> Tuple[str, bool]:
    """Return the weights to start from, if possible those of "ResNet strikes back".

    Returns:
        str, bool: for ``MODEL.WEIGHTS``, ``""`` if timm has none; whether they are RSB's.
    """
    tags = [n.partition(".")[2] for n in list_pretrained(f"{architecture(name)}.*")]
    of_rsb = [tag for tag in tags if is_rsb(f"{architecture(name)}.{tag}")]
    best = next((tag for tag in _RECIPES if tag in of_rsb), None) or next(iter(of_rsb), None)
    other = "tv2_in1k" if "tv2_in1k" in tags else timm.get_pretrained_cfg(architecture(name)).tag
    tag = best or (other if tags else None)
    return f"{TIMM}{architecture(name)}.{tag}" if tag else "", best is not None


def is_rsb(name: str) -> bool:
    """Whether timm attributes weights to "ResNet strikes back"."""
    return RSB_PAPER in str(timm.get_pretrained_cfg(name).paper_ids)


def has_modern_recipe(path: str) -> bool:
    """Whether ImageNet weights come from a recipe after which detectors train badly with SGD.

    These are "ResNet strikes back", torchvision's second weights (``tv2``) and ImageNet-21K by
    MIIL. With SGD at the rates for older weights, detectors get worse than from older weights:
    MMDetection's issue 8497 (Cascade R-CNN 35.5 AP from torchvision's second weights, 40.3 from the
    first), Alibaba-MIIL/ImageNet21K's issues 41 and 57 (8 AP less in Detectron2). The published
    names of files are recognized.
    """
    if path.startswith(TIMM):
        name = path[len(TIMM) :]
        tag = name.partition(".")[2]
        return tag.startswith("tv2_") or "miil" in tag or is_rsb(name)
    name = os.path.basename(path)
    return name.startswith(("resnet50_rsb_a", "resnet50-11ad3fa6")) or "-rsb-a" in name


def is_stock_weights(path: str) -> bool:
    """Whether a path is one of Detectron2's own models, but for torchvision's ResNets."""
    return path.startswith(_STOCK) and "/torchvision/" not in path


def _refuse_stock_weights(path: str, backbone_name: str) -> None:
    if not is_stock_weights(path):
        return
    is_caffe2 = "ImageNetPretrained/" in path
    what = "a Caffe2 model" if is_caffe2 else "a detector on Detectron2's own ResNet"
    weights, _ = recommended_weights(backbone_name)
    advice = f"write MODEL.WEIGHTS {weights}" if weights else "name a file of timm's weights"
    raise UserError(
        f"MODEL.WEIGHTS: {path} is {what}, of BGR and with other strides than timm's "
        f"{architecture(backbone_name)}, which would compute something else with it; {advice}"
    )


def _check_lazy_backbones(path: str) -> None:
    """The stock checkpointer asks for a file without saying for which model."""
    names = CheckedTimmBackbone.names_in_use()
    if names and architecture(path[len(TIMM) :]) not in map(architecture, names):
        raise UserError(
            f"{path} is of another architecture than the backbone, {names[0]}: write the same name "
            "in model.backbone.bottom_up.name and train.init_checkpoint"
        )


def _pretrained_cfg(name: str):
    try:
        pretrained_cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        pretrained_cfg = None
    if pretrained_cfg is None or not pretrained_cfg.has_weights:
        known = list_pretrained()
        known = [n for n in known if architecture(n) == architecture(name)] or known
        hint = did_you_mean(name, known, "see timm.list_pretrained()", cutoff=0.5)
        raise UserError(f"timm {timm.__version__} has no weights {TIMM}{name}; {hint}")
    return pretrained_cfg


def _repository(name: str) -> Tuple[str, str | None]:
    """The hub's repository of some weights, and its revision."""
    pretrained_cfg = _pretrained_cfg(name)
    if not pretrained_cfg.hf_hub_id:
        raise UserError(
            f"{TIMM}{name} is not on the Hugging Face hub; download {pretrained_cfg.url} and "
            "write MODEL.WEIGHTS path/to/that/file"
        )
    repository, _, revision = pretrained_cfg.hf_hub_id.partition("@")
    return repository, revision or None


# huggingface_hub is imported where it is used: importing this package must not need it.
def _find_in_cache(repository: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    for file_name in _FILE_NAMES:
        path = try_to_load_from_cache(repository, file_name, revision=revision)
        if isinstance(path, str) and os.path.isfile(path):
            return path
    return None


def _download(name: str, repository: str, revision: str | None, force: bool) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    for file_name in _FILE_NAMES:
        logger.info(f"Downloading {file_name} of {repository} from the Hugging Face hub ...")
        try:
            return hf_hub_download(
                repository,
                file_name,
                revision=revision,
                force_download=force,
                library_name="timm",
                library_version=timm.__version__,
            )
        except LocalEntryNotFoundError as e:
            raise _hub_unreachable(name, repository, e) from e
        except EntryNotFoundError:  # the hub answered that it does not have this file
            continue
        except Exception as e:  # HTTP, TLS, proxy, disk: each library below has its own
            raise _hub_unreachable(name, repository, e) from e
    raise UserError(f"{TIMM}{name}: {repository} on the hub has none of {_FILE_NAMES}")


def _hub_unreachable(name: str, repository: str, error: Exception) -> UserError:
    from huggingface_hub import hf_hub_url

    disk_error = find_disk_error(error)
    if disk_error is not None:
        return UserError(f"{TIMM}{name}: {_cache_not_writable(disk_error)}")
    return UserError(
        f"{TIMM}{name} is not in the cache {_not_downloaded(repository, error)}. By hand: "
        f"download {hf_hub_url(repository, _FILE_NAMES[0])} where there is a network, copy it "
        "here, and write MODEL.WEIGHTS path/to/model.safetensors"
    )


def _cache_not_writable(error: OSError) -> str:
    from huggingface_hub import constants

    return (
        f"cannot write to the cache {constants.HF_HUB_CACHE}: {error.strerror}; name another "
        "folder in the environment variable HF_HOME"
    )


def _not_downloaded(repository: str, error: Exception) -> str:
    """The cache, and why a file that is not in it was not downloaded."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"{constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set, so it was not downloaded"
    reason = str(error.__cause__ or error).strip().split("\n")[0][:200]
    return (
        f"{constants.HF_HUB_CACHE}, and downloading {repository} from {constants.ENDPOINT} failed "
        f"({reason})"
    )


def _digest(path: str) -> str:
    """The sha256 of a cached file; the cache names large files by theirs."""
    digest = sha256_of(path)
    stored_as = os.path.basename(os.path.realpath(path))
    if re.fullmatch(r"[0-9a-f]{64}", stored_as) and stored_as != digest:
        raise UserError(
            f"{os.path.realpath(path)} is damaged (its sha256 is {digest}): delete it, and it is "
            "downloaded again"
        )
    return digest


def _file_for_detectron2(name: str, force: bool) -> str:
    """The file that the stock checkpointer loads; see :class:`TimmHubHandler`."""
    source = fetch_timm(name, force)
    file_name = f"{name}-{_digest(source)[:16]}-timm{timm.__version__}.pth"
    path = os.path.join(get_cache_dir(), "rsb_d2", file_name)
    with file_lock(path):
        if force or not os.path.isfile(path):
            weights = _feature_net_weights(name, read_checkpoint(source)["model"])
            # The stock checkpointer looks for names that end in these: whatever the backbone is
            # called in a model, its network is called "body" in it.
            content = {"model": {f"body.{n}": t for n, t in weights.items()}}
            content.update(__author__="timm", matching_heuristics=True)
            save_torch(path, content)
    return path


def _feature_net_weights(name: str, weights: StateDict) -> StateDict:
    body = _feature_net(name).state_dict()
    found = match(weights, body)
    if found.missing or found.other_shape:
        updated = updated_by_timm(weights, name)
        found = found if updated is None else match(updated, body)
    if found.missing or found.other_shape:
        raise UserError(
            f"{TIMM}{name}: {len(found.missing)} of {len(body)} tensors of its features are "
            f"not in the file ({first(found.missing, 3)}), and {len(found.other_shape)} have "
            "another shape"
        )
    return add_missing_counters(found.fitting)


def _feature_net(name: str) -> torch.nn.Module:
    """The network of a backbone with all the features that there are, without storage."""
    for deepest in ("res5", "res4", "res3", "res2"):
        try:
            with torch.device("meta"):
                return TimmBackbone(name, out_features=[deepest]).body
        except UserError as e:
            error = e
    raise error


# ---- hf:// ----


class HubDetector(NamedTuple):
    """A detector of the Hugging Face hub in the local cache.

    Args:
        path (str): ``hf://OWNER/NAME@COMMIT``, which always means the same files.
        config_file (str): local path of its config.
        weights (str): local path of its weights, in safetensors.
    """

    path: str
    config_file: str
    weights: str


def fetch_hub(path: str) -> HubDetector:
    """Find a detector in Hugging Face's cache, or download it there.

    A branch or tag is looked up on the hub each time, unless ``HF_HUB_OFFLINE`` is set or the hub
    cannot be reached: then the version of the last download is used. Private repositories need
    the token of ``hf auth login`` or ``HF_TOKEN``.

    Args:
        path (str): ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``; a revision is a branch, a
            tag or a commit, and ``main`` if it is left out.

    Returns:
        HubDetector: with both files from the same commit.

    Raises:
        UserError: if there is no such repository or revision, if it has no detector of this
            project, if a token is needed, or if the hub cannot be reached.
    """
    repository, _, revision = path[len(HF) :].partition("@")
    check_hub_name(repository, path)
    config_file = _fetch_hub_file(path, repository, revision or None, HUB_CONFIG)
    commit = os.path.basename(os.path.dirname(config_file))  # of .../snapshots/COMMIT/config.yaml
    weights = _fetch_hub_file(path, repository, commit, HUB_WEIGHTS)
    _digest(weights)
    return HubDetector(f"{HF}{repository}@{commit}", config_file, weights)


def check_hub_name(repository: str, given: str) -> None:
    """Check the form of a repository's name.

    Args:
        repository (str): ``OWNER/NAME``.
        given (str): the user's path, for the message.

    Raises:
        UserError: for another form.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
        is_valid = repository.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise UserError(
            f"{given} is not the name of a repository on the Hugging Face hub; write "
            f"{HF if given.startswith(HF) else ''}OWNER/NAME"
        )


def _fetch_hub_file(path: str, repository: str, revision: str | None, file_name: str) -> str:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub import errors as hub

    try:
        return hf_hub_download(repository, file_name, revision=revision, library_name="rsb_d2")
    except hub.RevisionNotFoundError as e:
        raise UserError(f"{path}: {repository} on the hub has no revision {revision}") from e
    except hub.GatedRepoError as e:
        raise UserError(
            f"{path}: the owner of {repository} grants access on request: ask for it at "
            f"{constants.ENDPOINT}/{repository}, then run `hf auth login` or set HF_TOKEN"
        ) from e
    except hub.RepositoryNotFoundError as e:
        raise UserError(
            f"{path}: {constants.ENDPOINT} has no repository {repository}, or it is private; for a "
            "private one, run `hf auth login` or set HF_TOKEN to a token that may read it"
        ) from e
    except hub.LocalEntryNotFoundError as e:
        raise UserError(f"{path} is not in the cache {_not_downloaded(repository, e)}") from e
    except hub.EntryNotFoundError as e:
        raise UserError(
            f"{path}: {repository} has no {file_name} at {revision or 'main'}, so it is not a "
            "detector that `rsb-d2 push` has written"
        ) from e
    except Exception as e:  # HTTP, TLS, proxy, disk: each library below has its own
        if find_disk_error(e) is not None:
            raise UserError(f"{path}: {_cache_not_writable(find_disk_error(e))}") from e
        if getattr(getattr(e, "response", None), "status_code", None) in (401, 403):
            raise UserError(
                f"{path}: {constants.ENDPOINT} refuses the token; run `hf auth login` or set "
                "HF_TOKEN to a token that may read it"
            ) from e
        raise UserError(f"{path} is not in the cache {_not_downloaded(repository, e)}") from e


# ---- zoo:// ----


def is_published(path: str) -> bool:
    """Whether :func:`fetch_published` takes a path."""
    return path.startswith((ZOO, SERVER, TORCHVISION))


def fetch_published(path: str, force: bool = False) -> str:
    """Find a published file in the cache of Detectron2's ``PathManager``, or download it there.

    Args:
        path (str): ``zoo://NAME``, or an address on the server of OpenMMLab or PyTorch. The sha256
            of the file begins with the digits at the end of its name.
        force (bool): download it again.
    """
    url = _url(path[len(ZOO) :]) if path.startswith(ZOO) else escape_address(path)
    cached = _cached_path(url)
    if force and os.path.isfile(cached):
        os.remove(cached)  # iopath's own "force" uses an existing file
    was_cached = os.path.isfile(cached)
    try:
        local_path = PathManager.get_local_path(url, force=force)
    except Exception as e:  # HTTP, TLS, proxy, disk: each library below has its own
        raise _server_unreachable(path, url, cached, e) from e
    _check_digest(url, local_path, was_cached)
    return local_path


def _url(name: str) -> str:
    if name in URLS:
        return URLS[name]
    names = [f"{ZOO}{n}" for n in URLS]
    hint = did_you_mean(f"{ZOO}{name}", names, f"there are {', '.join(names)}", cutoff=0.5)
    raise UserError(f"there are no published weights {ZOO}{name}; {hint}")


def _cached_path(url: str) -> str:
    """Where iopath's ``HTTPURLHandler`` puts a download."""
    return os.path.join(get_cache_dir(), urlparse(url).path.lstrip("/"))


def _server_unreachable(path: str, url: str, cached: str, error: Exception) -> UserError:
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
    digest = sha256_of(local_path) if found else ""
    if not found or digest.startswith(found[1]):
        return
    damaged = f"its sha256 begins with {digest[:8]}, not with {found[1]}"
    if was_cached:
        raise UserError(
            f"{local_path} is damaged or another file ({damaged}): delete it, and it is "
            "downloaded again"
        )
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.remove(local_path)
    raise UserError(
        f"the download of {url} was cut off or changed in transit ({damaged}); it was deleted. "
        "Try again, or download it by hand and write MODEL.WEIGHTS path/to/that/file"
    )
