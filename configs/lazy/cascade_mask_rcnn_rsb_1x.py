"""../cascade_mask_rcnn_rsb_1x.yaml for Detectron2's tools/lazyconfig_train_net.py."""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config
from torch import nn

from rsb_d2.modeling import OpenMMLabCascadeROIHeads

from .common import bottom_up as _bottom_up
from .common import dataloader, lr_multiplier, optimizer, train
from .common import pixels as _pixels

model = get_config("common/models/cascade_rcnn.py").model
model.update(_pixels)
model.backbone.bottom_up = _bottom_up

# Differences of the published detector, OpenMMLab's, from Detectron2's; the YAML explains them.
model.proposal_generator.post_nms_topk = (2000, 1000)
model.proposal_generator.smooth_l1_beta = 1 / 9
model.proposal_generator.anchor_boundary_thresh = 0
_heads = model.roi_heads
_heads._target_ = OpenMMLabCascadeROIHeads
_heads.stage_loss_weights = [1.0, 0.5, 0.25]
_heads.mask_head.num_classes = "${model.roi_heads.num_classes}"
_heads.mask_head = L(nn.ModuleList)(modules=[_heads.mask_head] * 3)
for _predictor in _heads.box_predictors:
    _predictor.smooth_l1_beta = 1.0
_heads.box_predictors[2].box2box_transform.weights = (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067)
