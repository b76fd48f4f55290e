"""A config that notes who reads which of its keys."""

import sys
from collections import defaultdict

from detectron2.config import CfgNode

# What a config is made of: reading by these is copying, freezing and the like.
_PLUMBING = ("yacs", "fvcore", "copy", "detectron2.config", __name__)


class Reads:
    """For each key, the modules that have read it; copies of a config share it."""

    def __init__(self):
        self.modules = defaultdict(set)

    def __deepcopy__(self, memo):
        return self


class RecordedConfig(CfgNode):
    """A ``CfgNode`` that fills a :class:`Reads`; make one with :func:`recorded`."""

    def __getattr__(self, name):
        self._note(name)
        return super().__getattr__(name)

    def __getitem__(self, name):
        self._note(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self._note(name)
        return super().get(name, default)

    def _note(self, name):
        reader = sys._getframe(2).f_globals["__name__"]
        reads = self.__dict__.get("reads")
        if reads is not None and not reader.startswith(_PLUMBING):
            reads.modules[self.__dict__["path"] + name].add(reader)


def recorded(cfg, reads=None, path=""):
    """A copy of a config that notes its reads in ``reads``."""
    node = RecordedConfig()
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            value = recorded(value, reads, f"{path}{key}.")
        dict.__setitem__(node, key, value)
    node.__dict__.update(reads=reads, path=path)
    return node


def keys_of(cfg, path=""):
    """All keys that have a value of their own."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from keys_of(value, f"{path}{key}.")
        else:
            yield path + key
