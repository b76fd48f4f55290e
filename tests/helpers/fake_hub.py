"""Weights from a seed, and a Hugging Face cache folder that has them as the hub would give them."""

import hashlib
import os
from pathlib import Path

import safetensors.torch
import timm
import torch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_weights(name, seed=0):
    """The state dict of timm's model with random weights, statistics and counters, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in timm.create_model(name).state_dict().items()}
    return {n: _make_tensor(n, shape, generator) for n, shape in shapes.items()}


def _make_tensor(name, shape, generator):
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1000)
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return values * (2 / shape[1:].numel()) ** 0.5
    if name.endswith("weight"):
        # A small last norm of each bottleneck keeps a deep stack of them in range.
        return (0.2 if "bn3" in name else 1) * (1 + 0.1 * values)
    return 0.1 * values


def add_to_cache(cache, name, content):
    """Put a file of weights into a cache folder.

    Args:
        cache (Path): as in the environment's HF_HUB_CACHE.
        name (str): timm's name with its tag.
        content (dict[str, Tensor] or bytes): of model.safetensors.

    Returns:
        Path: the file.
    """
    if not isinstance(content, bytes):
        content = safetensors.torch.save(content, metadata={"format": "pt"})
    repository = Path(cache) / f"models--timm--{name}"
    blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
    file = repository / "snapshots" / COMMIT / "model.safetensors"
    for path in (blob, file, repository / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    (repository / "refs" / "main").write_text(COMMIT)
    file.symlink_to(os.path.relpath(blob, file.parent))
    return file
