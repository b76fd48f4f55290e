"""Pretraining of an image classifier: timm's own loop and this project.

timm is its parts as its train.py joins them; ours is a config of configs/pretrain. Both have the
same switches: procedure, size, batch, precision, memory format, compilation. They start from the
same weights and take the same images, from memory, and mix them by the same draw; their losses
before the first step must agree.
"""

from .measure import add_arguments, run

__all__ = ["add_arguments", "run"]
