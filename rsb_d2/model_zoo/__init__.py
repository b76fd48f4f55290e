"""This project's model zoo, with the interface of ``detectron2.model_zoo``."""

from .model_zoo import get, get_checkpoint_url, get_config, get_config_file, list, rsb_weights
from .rsb_backbone import with_rsb_backbone

__all__ = [
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "list",
    "rsb_weights",
    "with_rsb_backbone",
]
