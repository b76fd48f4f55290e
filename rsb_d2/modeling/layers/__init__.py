"""Layers of a model in training, with the values and names of weights of the plain ones."""

from .convolution import convolve_as_before, convolve_by_products, products_are_faster
from .fold_norm import fold_norms_in_training, unfold_norms

__all__ = [
    "convolve_as_before",
    "convolve_by_products",
    "fold_norms_in_training",
    "products_are_faster",
    "unfold_norms",
]
