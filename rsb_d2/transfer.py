"""Images on their way to a GPU, while it computes."""

from typing import Any, Dict, List

import torch


def is_pinned_for(device: str | torch.device) -> bool:
    """Whether loaders put images into pinned memory, from where a GPU reads by itself.

    Args:
        device (str or torch.device): of the model.
    """
    return torch.device(device).type == "cuda"


def send_images(batch: List[Dict[str, Any]], device: torch.device) -> List[Dict[str, Any]]:
    """Start the copies of images to a GPU, and wait for none of them.

    They go as they were loaded, mostly uint8, and are normalised there; what is queued on the
    device comes behind its copy. An image that no loader has pinned is pinned here.

    Args:
        batch (list[dict]): in Detectron2's format; what is beside ``"image"`` stays as it is.
        device (torch.device): of the model; nothing is done unless it is a GPU.

    Returns:
        list[dict]: the same, with ``"image"`` on the device.
    """
    if not is_pinned_for(device):
        return batch
    return [{**item, "image": _send(item["image"], device)} for item in batch]


def _send(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    return image if image.is_cuda else image.pin_memory().to(device, non_blocking=True)
