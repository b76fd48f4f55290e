"""../mask_rcnn_rsb_1x.yaml for Detectron2's tools/lazyconfig_train_net.py."""

from detectron2.model_zoo import get_config

from .common import bottom_up as _bottom_up
from .common import dataloader, lr_multiplier, optimizer, train
from .common import pixels as _pixels

model = get_config("common/models/mask_rcnn_fpn.py").model
model.update(_pixels)
model.backbone.bottom_up = _bottom_up
