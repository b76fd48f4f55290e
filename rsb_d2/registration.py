"""Names of this project in Detectron2's registries, which other projects write to as well.

Each entry has a second name, ``rsb_d2.NAME``, which no other project uses. Where another project
has registered the first name, only the second one means this project's entry. A registry refuses a
name that is taken, so names that another project is likely to register as well wait for
:func:`rsb_d2.add_rsb_config`: by then all projects of a program have been imported, in any order.
"""

import logging
from typing import Any, Callable, Dict, List, Tuple

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.utils.registry import Registry

logger = logging.getLogger(__name__)

PREFIX = "rsb_d2."

_entries: Dict[Tuple[str, str], Any] = {}  # by name of the registry and name of the entry
_waiting: List[Tuple[Registry, Any]] = []


def register(registry: Registry, *, waits: bool = False) -> Callable[[Any], Any]:
    """Make a decorator that registers a function or class under its name and ``rsb_d2.NAME``.

    ``waits`` leaves the first name free until :func:`register_waiting`.
    """

    def decorate(entry: Any) -> Any:
        _entries[registry._name, entry.__name__] = entry
        registry._do_register(f"{PREFIX}{entry.__name__}", entry)
        if waits:
            _waiting.append((registry, entry))
        else:
            _register_first_name(registry, entry)
        return entry

    return decorate


def register_waiting() -> None:
    """Register the waiting names that are free."""
    while _waiting:
        _register_first_name(*_waiting.pop())


def _register_first_name(registry: Registry, entry: Any) -> None:
    name = entry.__name__
    if name not in registry:
        registry.register(entry)
    else:
        logger.warning(
            f"{name} is registered by another project ({registry.get(name).__module__}); that of "
            f"rsb_d2 is {PREFIX}{name}."
        )


def reachable_name(registry: Registry, name: str) -> str:
    """Return the name under which an entry of this project is registered, if possible the first."""
    return name if known_name(registry, name) == name else f"{PREFIX}{name}"


def known_name(registry: Registry, name: str) -> str:
    """Return the first name of an entry of this project; other entries keep their names.

    The first name of this project, if another project has registered it, is marked as such.
    """
    first = name.removeprefix(PREFIX)
    entry = _entries.get((registry._name, first))
    if entry is None:
        return name
    is_ours = name not in registry or registry.get(name) is entry
    return first if is_ours else f"{name} of another project"


def backbone_name(cfg: CfgNode) -> str:
    """Return the :func:`known_name` of ``MODEL.BACKBONE.NAME``."""
    return known_name(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME)


def roi_heads_name(cfg: CfgNode) -> str:
    """Return the :func:`known_name` of ``MODEL.ROI_HEADS.NAME``."""
    return known_name(ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME)


def architecture_name(cfg: CfgNode) -> str:
    """Return the :func:`known_name` of ``MODEL.META_ARCHITECTURE``."""
    return known_name(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE)
