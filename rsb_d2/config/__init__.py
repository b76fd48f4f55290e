"""The keys of a config, its loading, and the checks between a command line and a frozen config.

Importing this package brings in the keys alone: ``loading`` and ``setup`` are modules of their own,
as the checks look at data, weights and the model.
"""

from .defaults import add_rsb_config

__all__ = ["add_rsb_config"]
