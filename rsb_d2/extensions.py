"""Registries through which the optional layers of the package extend its core.

The core imports neither ``rsb_d2.pretraining`` nor ``rsb_d2.addons``. Each of them registers here
the objects that the core may call, as dotted paths that are imported at the first use. With a layer
deleted, its entries are missing and everything else works.
"""

import pkgutil
from typing import Any, Dict, Iterator

from .errors import UserError


class LazyRegistry:
    """Objects by name, each registered as a dotted path and imported at its first use.

    Args:
        noun (str): the kind of the objects, for error messages.
    """

    def __init__(self, noun: str):
        self._noun = noun
        self._paths: Dict[str, str] = {}

    def register(self, name: str, path: str) -> None:
        """Register a dotted path such as ``"rsb_d2.addons.accelerate.optimize"`` under a name.

        A later registration under the same name replaces it.
        """
        self._paths[name] = path

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the objects in the order of their registration."""
        return (pkgutil.resolve_name(path) for path in self._paths.values())

    def get(self, name: str) -> Any:
        """Return the object registered under a name.

        Raises:
            UserError: if there is none.
        """
        if name not in self._paths:
            raise UserError(
                f"this installation of rsb_d2 has no {self._noun} {name!r}; it has "
                f"{', '.join(self._paths) or 'none'}"
            )
        return pkgutil.resolve_name(self._paths[name])


# Subclasses of rsb_d2.engine.tasks.Task by META_ARCHITECTURE; detectors need no entry.
TASKS = LazyRegistry("kind of training")

# Evaluators with `from_config` and `metric_names` by the `evaluator_type` of a data set.
EVALUATORS = LazyRegistry("evaluator")

# Functions `register(cfg, eval_only)` that register data sets named in a config.
DATASET_SOURCES = LazyRegistry("source of data sets")

# Subclasses of rsb_d2.data.opening.Storage: image folders other than those of PathManager.
STORAGES = LazyRegistry("storage")

# "optimize_for_inference": (model, dtype, to_cpu), returns a faster model with equal results.
# "pool_channels_last": (model), a RoIAlign for channels-last features on a CPU, in place.
ACCELERATION = LazyRegistry("acceleration")

# Subclasses of Detectron2's EventWriter by the names in LOGGERS. They are constructed with the
# config; a class method `check()` raises a UserError if the logger cannot be used.
LOGGERS = LazyRegistry("logger")
