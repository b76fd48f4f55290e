"""YAML files and the command line into a config, or one line that says which key is wrong.

Detectron2's ``Base-RetinaNet.yaml`` writes its anchor sizes as ``!!python/object/apply:eval
["[[x, x * 2**(1.0/3)] for x in [32, 64]]"]``, for which Detectron2 lets the file run any code.
Numbers, lists, tuples and comprehensions over these are evaluated here, and nothing else.
"""

import ast
import operator
import os
import re
from types import NoneType
from typing import Any, Dict, List, Sequence, Set, Tuple

import detectron2
import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from ..errors import UserError, did_you_mean
from .checks import check_no_key_is_empty
from .defaults import default_config
from .nodes import flat_items
from .resolving import resolve_keys

# Keys of Detectron2's main branch that 0.6 does not have, and their subjects.
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

_TAG = "tag:yaml.org,2002:python/object/apply:eval"
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}
_LARGEST_EXPONENT = 64
# How yacs reports "(1" of {KEY: (1, 2)}, which YAML reads as the keys KEY and "2)".
_CUT_TUPLE = re.compile(r" vs\. (\([^()]*)\) for config key: (\S+)")


def load_config(config_file: str, opts: list) -> CfgNode:
    """Read a config, and fill in the values that follow from its other keys.

    For anything but a run: it looks at neither the machine nor the data, unlike
    :func:`rsb_d2.config.setup.setup`. Arguments and errors as :func:`read_config`.
    """
    cfg, layers = read_config(config_file, opts)
    resolve_keys(cfg, layers)
    return cfg


def read_config(config_file: str, opts: list) -> Tuple[CfgNode, List[Set[str]]]:
    """Merge a YAML file and ``KEY VALUE`` pairs into this project's default config.

    Args:
        config_file (str): path of a YAML file; ``""`` for none.
        opts (list[str]): ``["SOLVER.BASE_LR", "0.001", ...]``.

    Returns:
        CfgNode, list[set[str]]: the config, not frozen, and the keys that each layer contains: the
        base files first, then the file, then the command line.

    Raises:
        UserError: if a file is missing or is not YAML, or if a key does not exist, is empty or has
            a value of the wrong type.
    """
    cfg = default_config()
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
    return cfg, [*({key for key, _ in flat_items(c)} for _, c in layers), set(opts[::2])]


def _merge(cfg: CfgNode, path: str, contents: List[dict]) -> None:
    """Merge a file and its bases as Detectron2 does, also those of older versions."""
    merged: dict = {}
    for content in contents:
        _merge_into(merged, content)
    merged.pop(BASE_KEY, None)
    vars(cfg)["load_yaml_with_base"] = lambda *_, **__: merged  # of this object only
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
    """Return paths and contents of a file's bases and, last, of the file itself.

    ``chain`` has the paths of the files whose ``_BASE_`` leads here.
    """
    if os.path.realpath(path) in map(os.path.realpath, chain):
        raise UserError(f"{BASE_KEY} forms a cycle: {' -> '.join([*chain, path])}")
    content = _read(path)
    given = content.get(BASE_KEY)
    bases = given if isinstance(given, list) else [given] if BASE_KEY in content else []
    if not all(isinstance(base, str) and base for base in bases) or given == []:
        raise UserError(
            f"{path}: {BASE_KEY} is {given!r}; write the path of a file, or leave it out"
        )
    layers = []
    for name in bases:
        base = os.path.expanduser(name)
        if not base.startswith(("/", "https://", "http://")):
            base = os.path.join(os.path.dirname(path), base)
        if not PathManager.isfile(base):
            from ..model_zoo.model_zoo import find_config

            if find_config(name) == name:
                raise UserError(
                    f"{path}: {BASE_KEY}: there is no file {base}, and {name} is not a name in "
                    "the model zoo"
                )
            base = find_config(name)
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
        raise UserError(f"{path}: this is not text in UTF-8 ({e.reason} at byte {e.start})") from e
    except yaml.MarkedYAMLError as e:
        where = f" (line {e.problem_mark.line + 1})" if e.problem_mark else ""
        what = " ".join(filter(None, [e.context, e.problem])).replace("\n", " ")
        raise UserError(f"{path}: {what}{where}") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: {' '.join(str(e).split())}") from e
    if content is None:
        raise UserError(f"{path}: the file is empty; write keys of the form `KEY: value`")
    if not isinstance(content, dict):
        raise UserError(f"{path}: this is not YAML of the form `KEY: value`")
    return content


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with arithmetic, and for keys that are text and stand once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            problem = None
            if not isinstance(key, str):
                problem = f"the key {key!r} is not text"
            elif key in seen:
                problem = f"the key {key} is written twice; YAML uses the last one"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _construct_arithmetic(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    values = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    if len(values) == 1 and isinstance(values[0], str):
        try:
            return evaluate(values[0])
        except (ValueError, SyntaxError, ArithmeticError, RecursionError) as e:
            reason = str(e)
    else:
        reason = "it must be a list of one text"
    raise yaml.constructor.ConstructorError(
        None, None, f"only arithmetic is evaluated ({reason}); write the numbers", node.start_mark
    )


_Loader.add_constructor(_TAG, _construct_arithmetic)


def evaluate(text: str) -> Any:
    """Evaluate arithmetic: numbers, lists, tuples, + - * / ** and ``[... for x in ...]``.

    Anything else raises a ``ValueError`` or ``SyntaxError``.
    """
    return _evaluate(ast.parse(text.strip(), mode="eval").body, {})


def _evaluate(node: ast.AST, names: Dict[str, Any]) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_evaluate(item, names) for item in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_number(node.operand, names))
    if isinstance(node, ast.BinOp):
        left, right = _number(node.left, names), _number(node.right, names)
        if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](left, right)
        if isinstance(node.op, ast.Pow) and abs(right) <= _LARGEST_EXPONENT:
            return left**right
    if isinstance(node, ast.ListComp) and len(node.generators) == 1:
        (loop,) = node.generators
        if isinstance(loop.target, ast.Name) and not loop.ifs and not loop.is_async:
            values = _evaluate(loop.iter, names)
            if isinstance(values, (list, tuple)):
                return [_evaluate(node.elt, {**names, loop.target.id: v}) for v in values]
    raise ValueError(f"not {ast.unparse(node)!r}")


def _number(node: ast.AST, names: Dict[str, Any]) -> int | float:
    value = _evaluate(node, names)
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is not a number")
    return value


def _check_nodes(path: str, content: dict, cfg: CfgNode, prefix: str = "") -> None:
    """Check that keys stand below the names that have keys, and values at those that have one."""
    for name, value in content.items():
        if name not in cfg:
            continue  # yacs reports it
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
    cut = _CUT_TUPLE.search(message)
    if cut:
        return (
            f"{cut[2]}: a comma ends the value {cut[1]} between {{ and }} in YAML; write it with "
            "brackets, as [1, 2]"
        )
    if "Non-existent" not in message:
        return message
    key = message.split(": ")[-1]
    if key in _OF_MAIN:
        return (
            f"{key}: this is Detectron2 {detectron2.__version__}, which has no {_OF_MAIN[key]}; "
            "build Detectron2's main branch, or leave the key out"
        )
    hint = did_you_mean(key, (key for key, _ in flat_items(cfg)), "")
    return f"{message}; {hint}" if hint else message
