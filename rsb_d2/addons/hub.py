"""Detectors on the Hugging Face hub: ``push`` writes the files that ``hf://OWNER/NAME`` reads."""

import json
import os
import tempfile
from typing import Any, Dict, List

from detectron2.config import CfgNode, get_cfg

from ..checkpoint.files import save_weights
from ..checkpoint.sources import HF, HUB_CONFIG, HUB_WEIGHTS, check_hub_name
from ..config import add_rsb_config
from ..data.class_names import ClassNames
from ..engine.pictures import read_metrics
from ..errors import UserError, first
from ..evaluation.results import split_metric
from ..predictor import load_detector, load_predict_config

# Keys that mean something only where the model was trained: they get their defaults.
_LOCAL_KEYS = (
    *("OUTPUT_DIR", "LOGGERS", "MODEL.WEIGHTS", "MODEL.DEVICE"),
    *("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.COCO_JSON", "DATASETS.CACHE"),
    *("DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST"),
)
_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def push(
    run: str,
    name: str,
    weights: str = "",
    license: str = "unknown",
    private: bool | None = None,
    revision: str = "",
) -> str:
    """Upload a trained detector, with its config, class names and a model card.

    The weights are loaded into the model of the config first, so that only complete detectors are
    uploaded. Paths of this machine are left out of the config.

    Args:
        run (str): ``OUTPUT_DIR`` of a training.
        name (str): repository on the hub, ``OWNER/NAME``; created if needed.
        weights (str): as ``MODEL.WEIGHTS``; ``""`` for the best weights of the run, or the last
            ones if there are none.
        license (str): the hub's identifier of a license, such as ``"apache-2.0"``.
        private (bool or None): visibility of a new repository; ``None`` for the owner's default.
        revision (str): branch to write to, created if needed; ``""`` for ``main``.

    Returns:
        str: address of the commit.

    Raises:
        UserError: if the run is not a complete detector, if a token is missing or may not write
            there, or if the hub cannot be reached.
    """
    check_hub_name(name, name)
    cfg = load_predict_config(run=run, weights=weights, device="cpu")
    model, classes = load_detector(cfg)
    with tempfile.TemporaryDirectory() as folder:
        save_weights(os.path.join(folder, HUB_WEIGHTS), model.state_dict())
        card = model_card(cfg, classes, name, license, evaluation(run, cfg))
        for file_name, text in {
            HUB_CONFIG: portable(cfg, classes).dump(),
            "README.md": card,
        }.items():
            with open(os.path.join(folder, file_name), "w", encoding="utf-8") as f:
                f.write(text)
        return _upload(folder, name, private, revision)


def _upload(folder: str, name: str, private: bool | None, revision: str) -> str:
    from huggingface_hub import HfApi, constants
    from huggingface_hub import errors as hub

    api = HfApi(library_name="rsb_d2")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision or None,
            commit_message="Upload a detector",
        )
    except hub.OfflineModeIsEnabled:
        raise UserError(f"{name}: HF_HUB_OFFLINE is set, so nothing was uploaded") from None
    except Exception as e:  # HTTP, TLS, proxy: each library below has its own
        status = getattr(getattr(e, "response", None), "status_code", None)
        if status in (401, 403) or isinstance(e, hub.LocalTokenNotFoundError):
            raise UserError(
                f"{name}: {constants.ENDPOINT} refuses the upload; run `hf auth login` or set "
                "HF_TOKEN to a token that may write there"
            ) from e
        reason = (str(e.__cause__ or e).strip() or type(e).__name__).split("\n")[0][:200]
        raise UserError(f"{name}: uploading to {constants.ENDPOINT} failed ({reason})") from e
    return commit.commit_url


def portable(cfg: CfgNode, classes: ClassNames) -> CfgNode:
    """Return a config with the class names, and without values that only hold where it was trained.

    Args:
        cfg (CfgNode): of a run; not changed.
        classes (ClassNames): of the model.
    """
    cfg, defaults = cfg.clone(), get_cfg()
    add_rsb_config(defaults)
    cfg.defrost()
    for key in _LOCAL_KEYS:
        *nodes, last = key.split(".")
        node, default = cfg, defaults
        for part in nodes:
            node, default = node[part], default[part]
        node[last] = default[last]
    cfg.DATASETS.CLASS_NAMES, cfg.DATASETS.CLASS_IDS = list(classes.names), list(classes.ids)
    return cfg


def evaluation(run: str, cfg: CfgNode) -> Dict[str, float]:
    """Return the metrics of the weights of a run, as in ``metrics.json``.

    Args:
        run (str): folder of the run.
        cfg (CfgNode): its config, with the weights.

    Returns:
        dict[str, float]: empty if these weights were not evaluated.
    """
    path, name = cfg.MODEL.WEIGHTS, os.path.basename(cfg.MODEL.WEIGHTS)
    if os.path.realpath(os.path.dirname(path)) != os.path.realpath(run):
        return {}
    try:
        metrics = read_metrics(run)
        done = None
        if name == "model_best.pth":
            with open(os.path.join(run, "best.json")) as f:
                done = json.load(f)["best"]["iterations"]
        elif name.startswith("model_final"):
            done = cfg.SOLVER.MAX_ITER
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    averaged = name == "model_final_ema.pth"
    found = {}
    for metric, values in metrics.items():
        part = split_metric(metric, cfg.DATASETS.TEST)
        # An evaluation between two steps is logged with the step before it.
        value = values.get(done, values.get(done - 1)) if done is not None else None
        if value is not None and part.task and part.averaged == averaged:
            found[metric] = value
    return found


def model_card(
    cfg: CfgNode, classes: ClassNames, name: str, license: str, metrics: Dict[str, float]
) -> str:
    """Return the README.md of a repository.

    Args:
        cfg (CfgNode): of the training.
        classes (ClassNames): of the model.
        name (str): repository, ``OWNER/NAME``.
        license (str): the hub's identifier of a license.
        metrics (dict[str, float]): of :func:`evaluation`.
    """
    from huggingface_hub import ModelCardData

    has_masks = cfg.MODEL.MASK_ON
    data = ModelCardData(
        license=license,
        library_name="rsb_d2",
        pipeline_tag="image-segmentation" if has_masks else "object-detection",
        tags=["object-detection", "detectron2", "timm"],
    )
    solver = cfg.SOLVER
    backbone = f"timm's `{cfg.MODEL.TIMM.NAME}`" if cfg.MODEL.TIMM.NAME else "a ResNet"
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    rows = [
        ("trained on", ", ".join(cfg.DATASETS.TRAIN) or "unknown"),
        ("optimizer", f"{solver.OPTIMIZER}, learning rate {solver.BASE_LR:g}"),
        ("batch", f"{solver.IMS_PER_BATCH} images"),
        ("iterations", f"{solver.MAX_ITER}, {solver.LR_SCHEDULER_NAME}"),
        ("image size", f"shorter side {first(sizes)}, at most {cfg.INPUT.MAX_SIZE_TRAIN} pixels"),
        ("classes", f"{len(classes.names)}: {', '.join(map(_cell, classes.names))}"),
    ]
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {name.partition('/')[2]}",
        "",
        f"A {cfg.MODEL.META_ARCHITECTURE} of [Detectron2](https://github.com/facebookresearch/"
        f"detectron2) on {backbone}, trained with rsb_d2.",
        "",
        "## Use",
        "",
        "```sh",
        f"rsb-d2 predict --weights {HF}{name} images/",
        "```",
        "",
        "```python",
        "from rsb_d2.predictor import Predictor, load_predict_config",
        "",
        f'predictor = Predictor.from_config(load_predict_config(weights="{HF}{name}"))',
        "```",
        "",
        "## Training",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in rows),
        "",
        "## Evaluation",
        "",
        *_evaluation_table(metrics, cfg),
        "",
    ]
    return "\n".join(lines)


def _evaluation_table(metrics: Dict[str, float], cfg: CfgNode) -> List[str]:
    tables: Dict[Any, Dict[str, float]] = {}
    for name, value in metrics.items():
        part = split_metric(name, cfg.DATASETS.TEST)
        if part.figure in _FIGURES:
            data = part.dataset or ", ".join(cfg.DATASETS.TEST)
            tables.setdefault((data, part.task), {})[part.figure] = value
    if not tables:
        return ["These weights were not evaluated during their training."]
    rows = [
        [data, task, *(f"{found[f]:.1f}" if f in found else "" for f in _FIGURES)]
        for (data, task), found in tables.items()
    ]
    head = ["data", "task", *_FIGURES]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
