"""../frcnn_rsb_1x.yaml for Detectron2's tools/lazyconfig_train_net.py."""

from .mask_rcnn_rsb_1x import dataloader, lr_multiplier, model, optimizer, train

for name in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(name)
dataloader.train.mapper.use_instance_mask = False
