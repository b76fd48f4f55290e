"""The way of a config: ``load_config`` (or ``setup``), ``resolve``, ``validate``.

Importing this package provides only the keys. The other names are imported at their first use, as
they look at data, weights and the model.
"""

import importlib

from .defaults import add_rsb_config
from .nodes import flat_items, get_value

_MODULES = {"load_config": ".loading", "resolve": ".resolving", "validate": ".validating"}

__all__ = ["add_rsb_config", "flat_items", "get_value", *_MODULES]


def __getattr__(name):
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
