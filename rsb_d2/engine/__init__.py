from .setup import load_config, setup
from .trainer import Trainer

__all__ = ["Trainer", "load_config", "setup"]
