"""Arithmetic in a YAML file, without running Python that a file brings along.

Detectron2's ``Base-RetinaNet.yaml`` writes its anchor sizes as ``!!python/object/apply:eval
["[[x, x * 2**(1.0/3)] for x in [32, 64]]"]``, for which Detectron2 lets the file run any code.
Numbers, lists, tuples and comprehensions over these are evaluated here, and nothing else.
"""

import ast
import operator
from typing import Any, Dict

import yaml

_TAG = "tag:yaml.org,2002:python/object/apply:eval"
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}
_LARGEST_EXPONENT = 64


class ArithmeticLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also evaluates arithmetic."""


def _construct(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
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


ArithmeticLoader.add_constructor(_TAG, _construct)


def evaluate(text: str) -> Any:
    """Evaluate arithmetic.

    Args:
        text (str): numbers, lists and tuples, + - * / and **, and ``[... for x in ...]``.

    Returns:
        int, float, list or tuple

    Raises:
        ValueError: for anything else.
        SyntaxError: if it is no Python.
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
        raise ValueError(f"{value!r} is no number")
    return value
