"""A YAML file and ``KEY VALUE`` pairs into a config, or one line that says which key is wrong."""

import difflib
import os
from types import NoneType
from typing import Any, List, Sequence, Tuple

import detectron2
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from ..engine.tasks import get_task
from ..errors import UserError
from ..solver.epochs import keep_last_word
from .check_values import check_no_key_is_empty
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
        UserError: if the file or one of its bases is missing or is no YAML, if a key does not
            exist, is left empty or has a value of the wrong type, or if the keys of the backbone
            contradict each other.
    """
    cfg = get_cfg()
    add_rsb_config(cfg)
    config_file = os.path.expanduser(config_file)
    layers = _layers(config_file) if config_file else []
    for path, content in layers:
        _check_nodes(path, content, cfg)
    if config_file:
        try:
            _merge(cfg, config_file, [content for _, content in layers])
        except (KeyError, ValueError, AssertionError) as e:
            raise UserError(f"{config_file}: {_explain(cfg, e)}") from e
    if len(opts) % 2:
        raise UserError(
            f"overrides are pairs of KEY VALUE, but there are {len(opts)} words: {opts}"
        )
    try:
        for key in opts[::2]:
            _check_key(key, cfg)
        cfg.merge_from_list(opts)
    except (KeyError, ValueError, AssertionError) as e:
        raise UserError(f"command line: {_explain(cfg, e)}") from e
    check_no_key_is_empty(cfg)
    contents = [content for _, content in layers]
    on_command_line = [key[len("SOLVER.") :] for key in opts[::2] if key.startswith("SOLVER.")]
    of_solver = [content.get("SOLVER", {}) for content in contents]
    keep_last_word(cfg, [*of_solver, dict.fromkeys(on_command_line)])
    get_task(cfg).resolve(cfg, said_of_resnets(contents, opts[::2]))
    return expand_paths(cfg)


def _merge(cfg: CfgNode, path: str, contents: List[dict]) -> None:
    """Merge a file and its bases as Detectron2 does, which also reads those of older versions."""
    merged: dict = {}
    for content in contents:
        _merge_into(merged, content)
    merged.pop(BASE_KEY, None)
    vars(cfg)["load_yaml_with_base"] = lambda *_, **__: merged  # of this object alone
    try:
        cfg.merge_from_file(path, allow_unsafe=False)
    finally:
        del vars(cfg)["load_yaml_with_base"]


def _merge_into(merged: dict, content: dict) -> None:
    for key, value in content.items():
        if isinstance(value, dict):
            node = merged.get(key)
            merged[key] = node if isinstance(node, dict) else {}
            _merge_into(merged[key], value)
        else:
            merged[key] = value


def _layers(path: str, chain: Sequence[str] = ()) -> List[Tuple[str, dict]]:
    """Paths and contents of a file and, before it, of its bases.

    Args:
        path (str): of a YAML file.
        chain (sequence of str): paths of the files that lead here by their ``_BASE_``.

    Raises:
        UserError: if one cannot be read or holds anything but keys.
    """
    if os.path.realpath(path) in map(os.path.realpath, chain):
        raise UserError(f"{BASE_KEY} leads in a circle: {' -> '.join([*chain, path])}")
    content = _read(path)
    given = content.get(BASE_KEY)
    bases = given if isinstance(given, list) else [given] if BASE_KEY in content else []
    if not all(isinstance(base, str) and base for base in bases) or given == []:
        raise UserError(
            f"{path}: {BASE_KEY} is {given!r}; write the path of a file, or leave it out"
        )
    layers = []
    for base in bases:
        base = os.path.expanduser(base)
        if not base.startswith(("/", "https://", "http://")):
            base = os.path.join(os.path.dirname(path), base)
        if not PathManager.isfile(base):
            raise UserError(f"{path}: {BASE_KEY}: there is no file {base}")
        layers += _layers(base, [*chain, path])
    return [*layers, (path, content)]


def _read(path: str) -> dict:
    try:
        if PathManager.isdir(path):
            raise UserError(f"{path} is a folder; name a file")
        if not PathManager.isfile(path):
            raise UserError(f"there is no file {path}")
        with PathManager.open(path, "rb") as f:
            content = yaml.load(f.read().decode("utf-8-sig"), _Loader)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: this is no text in UTF-8 ({e.reason} at byte {e.start})") from e
    except yaml.MarkedYAMLError as e:
        where = f" (line {e.problem_mark.line + 1})" if e.problem_mark else ""
        what = " ".join(filter(None, [e.context, e.problem])).replace("\n", " ")
        raise UserError(f"{path}: {what}{where}") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: {' '.join(str(e).split())}") from e
    if content is None:
        raise UserError(f"{path}: the file is empty; write keys of the form `KEY: value`")
    if not isinstance(content, dict):
        raise UserError(f"{path}: this is no YAML of the form `KEY: value`")
    return content


class _Loader(ArithmeticLoader):
    """A loader of arithmetic, but that a key is text and stands once in its node."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            problem = None
            if not isinstance(key, str):
                problem = f"the key {key!r} is no text"
            elif key in seen:
                problem = f"the key {key} is there twice; YAML takes the last one"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _check_nodes(path: str, content: dict, cfg: CfgNode, prefix: str = "") -> None:
    """Check that keys stand below the names that have keys, and values at those that have one."""
    for name, value in content.items():
        if name not in cfg:
            continue  # yacs says so
        key, is_group = f"{prefix}{name}", isinstance(cfg[name], CfgNode)
        if is_group and not isinstance(value, dict):
            raise UserError(f"{path}: {_not_one_value(key, cfg[name], value)}")
        if isinstance(value, dict) and not is_group:
            raise UserError(
                f"{path}: {key} takes one value, not keys below it; write a value such as the "
                f"default {cfg[name]!r}"
            )
        if is_group:
            _check_nodes(path, value, cfg[name], f"{key}.")
    if not prefix and not isinstance(content.get("VERSION", 0), (int, NoneType)):
        raise UserError(f"{path}: VERSION is {content['VERSION']!r}; write {cfg.VERSION}")


def _check_key(key: Any, cfg: CfgNode) -> None:
    """Check that there is such a key, and that it takes a value."""
    node = cfg
    for part in str(key).split("."):
        if not isinstance(node, CfgNode) or part not in node:
            raise KeyError(f"Non-existent config key: {key}")
        node = node[part]
    if isinstance(node, CfgNode):
        raise ValueError(_not_one_value(key, node, ""))


def _not_one_value(key: str, node: CfgNode, value: Any) -> str:
    given = "is empty" if value is None else "is given one value"
    return (
        f"{key} is a group of keys, but {given}; write its keys, such as {key}.{next(iter(node))}, "
        "or leave it out"
    )


def _explain(cfg: CfgNode, error: Exception) -> str:
    """The message of yacs, with the closest existing keys where one does not exist."""
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
