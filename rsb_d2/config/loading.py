"""A YAML file and ``KEY VALUE`` pairs into a config, or one line that says which key is wrong."""

import difflib
import io
import os
from typing import IO, Any, List

import detectron2
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from ..engine.tasks import get_task
from ..errors import UserError
from ..solver.epochs import keep_last_word
from .defaults import add_rsb_config
from .paths import expand_paths
from .stock.arithmetic import ArithmeticLoader
from .stock.follow import said_of_resnets

# Keys of Detectron2's main branch that 0.6 does not have, and what they are about.
_OF_MAIN = {
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": "federated loss",
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": "a sigmoid loss in the box head",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": "federated loss",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": "federated loss",
    "DATALOADER.REPEAT_SQRT": "repeat factors without a square root",
    "SOLVER.BASE_LR_END": "a last learning rate of WarmupCosineLR",
    "SOLVER.NUM_DECAYS": "WarmupStepWithFixedGammaLR",
    "SOLVER.RESCALE_INTERVAL": "a schedule rescaled after the warm-up",
    "FLOAT32_PRECISION": "a choice of the precision of float32",
}


def load_config(config_file: str, opts: list) -> CfgNode:
    """Merge a YAML file and ``KEY VALUE`` pairs into this project's default config.

    Args:
        config_file (str): path of a YAML file; ``""`` for none.
        opts (list[str]): ``["SOLVER.BASE_LR", "0.001", ...]``.

    Returns:
        CfgNode: not frozen; see :func:`.stock.follow.follow_stock_keys` for what follows in it. Of
        a length in epochs and one in iterations, the one that is said last counts: on the command
        line rather than in the file, in the file rather than in its base.

    Raises:
        UserError: if the file is missing or is no YAML, if a key does not exist or a value has
            the wrong type, or if the keys of the backbone contradict each other.
    """
    cfg = get_cfg()
    add_rsb_config(cfg)
    config_file = os.path.expanduser(config_file)
    if config_file:
        if not PathManager.isfile(config_file):
            raise UserError(f"--config-file: there is no file {config_file}")
        try:
            _merge_file(cfg, config_file)
        except AttributeError as e:  # yacs asks whatever the file holds for its items
            raise UserError(f"{config_file}: this is no YAML of the form `KEY: value`") from e
        except (KeyError, ValueError, AssertionError, OSError, yaml.YAMLError) as e:
            raise UserError(f"{config_file}: {_explain(cfg, e)}") from e
    if len(opts) % 2:
        raise UserError(
            f"overrides are pairs of KEY VALUE, but there are {len(opts)} words: {opts}"
        )
    try:
        cfg.merge_from_list(opts)
    except (KeyError, ValueError, AssertionError) as e:
        raise UserError(f"command line: {_explain(cfg, e)}") from e
    layers = _layers(config_file) if config_file else []
    on_command_line = [key[len("SOLVER.") :] for key in opts[::2] if key.startswith("SOLVER.")]
    of_solver = [layer.get("SOLVER") or {} for layer in layers]
    keep_last_word(cfg, [*of_solver, dict.fromkeys(on_command_line)])
    get_task(cfg).resolve(cfg, said_of_resnets(layers, opts[::2]))
    return expand_paths(cfg)


def _read(path: str) -> Any:
    with PathManager.open(path) as f:
        return yaml.load(f, Loader=ArithmeticLoader)


class _Reader(CfgNode):
    """Detectron2's reader of files with bases, to which arithmetic is what comes of it."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        return io.StringIO(yaml.safe_dump(_read(filename)))


def _merge_file(cfg: CfgNode, path: str) -> None:
    vars(cfg)["load_yaml_with_base"] = _Reader.load_yaml_with_base  # of this object alone
    try:
        cfg.merge_from_file(path, allow_unsafe=False)
    finally:
        del vars(cfg)["load_yaml_with_base"]


def _layers(path: str) -> List[dict]:
    """What stands in a file that could be loaded, and in its bases before it."""
    content = _read(path)
    bases = content.get(BASE_KEY, [])
    layers = []
    for base in [bases] if isinstance(bases, str) else bases:
        base = os.path.expanduser(base)
        if not base.startswith(("/", "https://", "http://")):
            base = os.path.join(os.path.dirname(path), base)
        layers += _layers(base)
    return [*layers, content]


def _explain(cfg: CfgNode, error: Exception) -> str:
    """The message of yacs, with the closest existing keys where one does not exist."""
    if isinstance(error, yaml.MarkedYAMLError):
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        return " ".join(filter(None, [error.context, error.problem])).replace("\n", " ") + where
    message = str(error.args[0] if error.args else error).replace("\n", " ")
    if "Non-existent" not in message:
        return message
    key = message.split(": ")[-1]
    if key in _OF_MAIN:
        return (
            f"{key}: this is Detectron2 {detectron2.__version__}, which has no {_OF_MAIN[key]}; "
            "build Detectron2's main branch, or leave the key out"
        )
    matches = difflib.get_close_matches(key, _all_keys(cfg), n=3)
    return message + (f"; did you mean {', '.join(matches)}?" if matches else "")


def _all_keys(cfg: CfgNode, prefix: str = "") -> list:
    keys = []
    for name, value in cfg.items():
        keys.append(prefix + name)
        if isinstance(value, CfgNode):
            keys += _all_keys(value, f"{prefix}{name}.")
    return keys
