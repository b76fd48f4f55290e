"""The config of a run that is resumed against the one that it was started with."""

import logging
from typing import Any, Dict, List, Tuple

import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from ..checkpoint.run_folder import CONFIG_KEY, has_run, read_newest_entry
from ..errors import UserError

logger = logging.getLogger(__name__)

# With another value of these, a key's name or its beginning, the run would not be the same one ...
_MATTERS = (
    *("MODEL.", "MODEL_EMA.", "INPUT.", "SOLVER.", "SEED", "DATALOADER.", "GLOBAL."),
    *("DATASETS.TRAIN", "DATASETS.CLASS_NAMES", "DATASETS.CLASS_IDS", "DATASETS.PROPOSAL_FILES_TR"),
    "DATASETS.KEYPOINT_FLIP_PAIRS",
)
# ... but for these: where and how fast it runs, how long, what is kept of it and how it is
# evaluated.
_MAY_DIFFER = (
    *("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.CHANNELS_LAST", "MODEL.COMPILE"),
    *("MODEL.TIMM.FOLD_NORM", "MODEL_EMA.DEVICE", "SOLVER.AMP."),
    *("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.CHECKPOINT_", "SOLVER.RESUME_WITH_CHANGES"),
    *("SOLVER.MAX_EPOCHS", "SOLVER.STEP_EPOCHS", "SOLVER.ACCUMULATE_STEPS"),
    *("SOLVER.BEST_", "SOLVER.EARLY_STOP_PATIENCE", "SOLVER.REFERENCE_WORLD_SIZE"),
    *("DATALOADER.NUM_WORKERS", "DATALOADER.MAX_BAD_IMAGES"),
)


def check_resumed_config(cfg: CfgNode) -> None:
    """Compare the config with that of the run in ``OUTPUT_DIR`` that is to be resumed, if any.

    Args:
        cfg (CfgNode): ``SOLVER.RESUME_WITH_CHANGES`` lets it differ in anything.

    Raises:
        UserError: if they differ in what matters: the model, the classes, the batch, the seed,
            the data or the optimizer. In all processes alike.
    """
    if not has_run(cfg.OUTPUT_DIR):
        return
    differences = _differences(cfg) if comm.is_main_process() else None
    differences = comm.all_gather(differences)[0]
    that_matter = [text for matters, text in differences if matters]
    if that_matter and not cfg.SOLVER.RESUME_WITH_CHANGES:
        raise UserError(
            f"--resume: the run in {cfg.OUTPUT_DIR} was started with another config: "
            f"{'; '.join(that_matter)}. Give it its own values, or another OUTPUT_DIR, or say "
            "SOLVER.RESUME_WITH_CHANGES True"
        )
    if differences:
        texts = "; ".join(text for _, text in differences)
        logger.warning(f"--resume: the config is no longer that of the run so far: {texts}")


def _differences(cfg: CfgNode) -> List[Tuple[bool, str]]:
    """Whether it matters, and what it was and is, of each key with another value."""
    text = read_newest_entry(cfg.OUTPUT_DIR, CONFIG_KEY)
    if not isinstance(text, str):  # of Detectron2's own trainer
        return []
    before = dict(_flat(yaml.safe_load(text)))
    # As the trainer does.
    scaled = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    now = dict(_flat(yaml.safe_load(scaled.dump())))
    differences = []
    for key in sorted(before.keys() & now.keys()):
        if before[key] == now[key]:
            continue
        matters = key.startswith(_MATTERS) and not key.startswith(_MAY_DIFFER)
        matters = matters and not key.endswith(("_TEST", ".TEST")) and ".TEST_" not in key
        if matters or key.startswith("SOLVER."):
            differences.append((matters, f"{key} was {before[key]!r} and is {now[key]!r}"))
    return differences


def _flat(node: Dict[str, Any], prefix: str = "") -> List[Tuple[str, Any]]:
    items = []
    for key, value in node.items():
        if isinstance(value, dict):
            items += _flat(value, f"{prefix}{key}.")
        else:
            items.append((prefix + key, list(value) if isinstance(value, tuple) else value))
    return items
