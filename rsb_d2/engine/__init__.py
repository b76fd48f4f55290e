from .launch import launch
from .setup import load_config, setup
from .trainer import Trainer

__all__ = ["Trainer", "launch", "load_config", "setup"]
