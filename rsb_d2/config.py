"""Every config key that this project adds to Detectron2's."""

from detectron2.config import CfgNode as CN


def add_rsb_config(cfg: CN) -> None:
    """Add this project's keys, with their defaults, to a Detectron2 config.

    Call it between ``get_cfg()`` and ``merge_from_file()``. The defaults leave every stock
    Detectron2 config as it was.

    Args:
        cfg (CfgNode): a config as ``detectron2.config.get_cfg()`` returns it; changed in place.
    """
    cfg.MODEL.TIMM = CN()
    # Name of a timm architecture, e.g. "resnet50" or, with a tag, "resnet50.a1_in1k". It says
    # what is built; the weights come from MODEL.WEIGHTS alone.
    cfg.MODEL.TIMM.NAME = "resnet50"
    # Features to return, in this order, named by their stride: "stem" (2), "res2" (4),
    # "res3" (8), "res4" (16), "res5" (32). Layers above the deepest one are not built.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Batch norm of the layers that MODEL.BACKBONE.FREEZE_AT leaves trainable: "FrozenBN"
    # (statistics, weight and bias fixed), "BN" or "SyncBN" (synchronised between processes).
    cfg.MODEL.TIMM.NORM = "BN"
    # With NORM "BN" or "SyncBN": keep the running statistics fixed, and normalise with them,
    # while weight and bias train. The published recipe (norm_eval=True in MMDetection).
    cfg.MODEL.TIMM.NORM_EVAL = True

    # A ReLU between P6 and P7 of build_timm_retinanet_fpn_backbone, as Detectron2 has it. The
    # published RetinaNet has none.
    cfg.MODEL.RETINANET.P7_RELU = True
    # With ROI_HEADS.NAME "OpenMMLabCascadeROIHeads": factor of each stage's losses, as published;
    # Detectron2's own CascadeROIHeads scales gradients instead and does not read it.
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS = [1.0, 0.5, 0.25]

    # "SGD": Detectron2's own builder, untouched. "AdamW": same parameter groups, decoupled decay.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # AdamW's coefficients of the running averages of the gradient and of its square.
    cfg.SOLVER.BETAS = [0.9, 0.999]

    # COCO-format data sets to register under a name of one's own, without any Python:
    # [[name, annotation file, image folder], ...]; use the names in DATASETS.TRAIN and .TEST.
    cfg.DATASETS.COCO_JSON = []
    # Folder of the sample data, made there when it is missing; "" makes none. Its annotations are
    # then named in DATASETS.COCO_JSON like anybody's.
    cfg.DATASETS.SAMPLE_DATA = ""
