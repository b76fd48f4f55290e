"""The keys of a config by their dotted names, and a table of changes of their values."""

import logging
from contextlib import contextmanager
from typing import Any, Iterator, List, Mapping, Tuple

from detectron2.config import CfgNode
from tabulate import tabulate

logger = logging.getLogger(__name__)


def flat_items(node: Mapping[str, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Iterate over the keys of nested nodes with their values: ``("SOLVER.BASE_LR", 0.02)``."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from flat_items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def get_value(node: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return the value or the node of a dotted key, or ``default`` if there is no such key."""
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return default
        node = node[name]
    return node


class Changes:
    """Changes of the values of a config, each with its reason."""

    def __init__(self, cfg: CfgNode):
        self._cfg = cfg
        self._rows: List[Tuple[str, str, str, str]] = []

    @contextmanager
    def because(self, reason: str) -> Iterator[None]:
        """Record the changes in a block, with the reason for all of them."""
        before = dict(flat_items(self._cfg))
        yield
        for key, value in flat_items(self._cfg):
            if plain(before[key]) != plain(value):
                self._rows.append((key, _short(before[key]), _short(value), reason))

    def log(self) -> None:
        """Log all changes so far as one table; nothing if there are none."""
        if self._rows:
            headers = ("key", "from", "to", "reason")
            table = tabulate(self._rows, headers, disable_numparse=True)
            logger.info(f"Values of the config that follow from others:\n{table}")


def plain(value: Any) -> Any:
    """Return a tuple as a list, for comparisons; any other value as it is."""
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
