"""Examples at random, the same in every run, and what may come of them.

FUZZ_SEED=7 pytest -m "" tests/data/test_fuzz.py draws others.
"""

import os

import torch

SEED = int(os.environ.get("FUZZ_SEED", "0"))
WIDTH, HEIGHT = 48, 40


NUM_CLASSES = 2


def check_message(error):
    message = str(error)
    assert len(message.splitlines()) == 1 and len(message) < 1500, message
    message.encode()


def check_batch(image, with_masks, mask_format):
    assert image["image"].dtype == torch.uint8 and image["image"].dim() == 3
    instances = image["instances"]
    height, width = instances.image_size
    assert image["image"].shape == (3, height, width) and min(height, width) >= 1
    boxes = instances.gt_boxes.tensor
    assert boxes.shape == (len(instances), 4) and boxes.isfinite().all() and (boxes >= 0).all()
    assert (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    classes = instances.gt_classes
    assert classes.dtype == torch.int64 and ((classes >= 0) & (classes < NUM_CLASSES)).all()
    if with_masks and len(instances):
        masks = instances.gt_masks
        if mask_format == "bitmask":
            assert masks.tensor.shape == (len(instances), height, width)
        cropped = masks.crop_and_resize(boxes, 7)  # what the mask head's loss does
        assert cropped.shape == (len(instances), 7, 7)
