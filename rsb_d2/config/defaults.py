"""Every config key that this project adds to Detectron2's."""

import logging
from typing import List

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from ..errors import UserError
from ..registration import register_waiting
from .nodes import plain

logger = logging.getLogger(__name__)

# Keys of earlier versions, which are in the config.yaml of their runs; yacs ignores them there with
# a warning. tools/sample_data.py now makes the sample data.
_REMOVED_KEYS = ("DATASETS.SAMPLE_DATA", "DATASETS.SAMPLE_OBJECTS")


def add_rsb_config(cfg: CN) -> None:
    """Add this project's keys, with their defaults, to a Detectron2 config.

    Call it between ``get_cfg()`` and ``merge_from_file()``, after all projects have been imported
    and after the functions with which others add their keys: these may replace a node, such as
    ``MODEL.TIMM``, that two projects have. Here a key that is there keeps its value, and one line
    names those whose value is not this project's default. Calling it again changes nothing. The
    defaults leave every stock Detectron2 config as it was.

    Args:
        cfg (CfgNode): a config as ``detectron2.config.get_cfg()`` returns it, with or without keys
            of other projects; changed in place.

    Raises:
        UserError: if another project has a value where this one has a node with keys.
    """
    register_waiting()
    for key in _REMOVED_KEYS:
        if key not in vars(cfg)[CN.DEPRECATED_KEYS]:  # key_is_deprecated() would log a warning
            cfg.register_deprecated_key(key)
    kept: List[str] = []
    if _add(cfg, _defaults(), "", kept) and kept:
        logger.warning(f"Keys that another project has set are kept: {', '.join(kept)}.")


def default_config() -> CN:
    """Return Detectron2's default config with the keys of :func:`add_rsb_config`."""
    cfg = get_cfg()
    add_rsb_config(cfg)
    return cfg


def _add(node: CN, defaults: CN, prefix: str, kept: List[str]) -> bool:
    """Add the missing keys; return whether there was one.

    A text for each key that has another value than its default is appended to ``kept``.
    """
    has_added = False
    for name, default in defaults.items():
        key = f"{prefix}{name}"
        if name not in node:
            setattr(node, name, default)
            has_added = True
        elif isinstance(default, CN):
            if not isinstance(node[name], CN):
                raise UserError(
                    f"{key} is {node[name]!r} in the config, where rsb_d2 has the keys "
                    f"{', '.join(default)}; the two projects cannot share a config"
                )
            has_added |= _add(node[name], default, f"{key}.", kept)
        elif plain(node[name]) != plain(default):
            kept.append(f"{key} {node[name]!r} (rsb_d2's default is {default!r})")
    return has_added


def check_has_keys(cfg: CN, node: str = "MODEL.TIMM") -> None:
    """Check that a config has the keys of :func:`add_rsb_config` below ``node``; ``""`` for all."""
    defaults = _defaults()
    for part in filter(None, node.split(".")):
        defaults = defaults[part]
        if part not in cfg:
            raise _missing(node)
        cfg = cfg[part]
    _check_has(cfg, defaults, f"{node}." if node else "")


def _check_has(node: CN, defaults: CN, prefix: str) -> None:
    for name, default in defaults.items():
        if name not in node:
            raise _missing(f"{prefix}{name}")
        if isinstance(default, CN):
            _check_has(node[name], default, f"{prefix}{name}.")


def _missing(key: str) -> UserError:
    return UserError(
        f"{key} is not in the config; call rsb_d2.add_rsb_config(cfg) before "
        "cfg.merge_from_file(...), and after the functions with which other projects add their "
        "keys, which may replace a node"
    )


def _defaults() -> CN:
    cfg = CN(
        {
            "MODEL": {"RETINANET": {}, "ROI_BOX_CASCADE_HEAD": {}},
            "SOLVER": {"AMP": {}},
            "INPUT": {},
            "DATASETS": {},
            "TEST": {},
            "DATALOADER": {},
        }
    )
    cfg.MODEL.TIMM = CN()
    # Name of a timm architecture, e.g. "resnet50" or, with a tag, "resnet50.a1_in1k". It defines
    # the network; the weights come from MODEL.WEIGHTS only. "": the ResNet that Detectron2's
    # MODEL.RESNETS describes, its norm included; so a stock YAML needs no key of this node.
    cfg.MODEL.TIMM.NAME = ""
    # Features to return, in this order, named by their stride: "stem" (2), "res2" (4),
    # "res3" (8), "res4" (16), "res5" (32). Layers above the deepest one are not built. []: with a
    # NAME all from res2 on, without one those of FPN.IN_FEATURES or RESNETS.OUT_FEATURES.
    cfg.MODEL.TIMM.OUT_FEATURES = []
    # Batch norm of the layers that MODEL.BACKBONE.FREEZE_AT leaves trainable: "FrozenBN"
    # (statistics, weight and bias fixed), "BN" or "SyncBN" (synchronized between processes). "":
    # RESNETS.NORM, or, with a NAME and RESNETS.NORM at its default, "BN".
    cfg.MODEL.TIMM.NORM = ""
    # With NORM "BN" or "SyncBN": keep the running statistics fixed and normalize with them,
    # while weight and bias train. The published recipe (norm_eval=True in MMDetection). None: True,
    # but False where the norm is that of RESNETS.NORM, which learns its statistics in Detectron2.
    cfg.MODEL.TIMM.NORM_EVAL = None
    # With NORM_EVAL: compute batch norm in training as a part of the convolution before it: the
    # same gradients within rounding, and half the memory for the backbone's features.
    cfg.MODEL.TIMM.FOLD_NORM = True

    # A ReLU between P6 and P7 of build_timm_retinanet_fpn_backbone, as Detectron2 has it. The
    # published RetinaNet has none.
    cfg.MODEL.RETINANET.P7_RELU = True
    # Feature from which build_timm_retinanet_fpn_backbone computes P6: "p5", as torchvision's first
    # RetinaNet, or a feature of the backbone. "": the deepest of FPN.IN_FEATURES, as in Detectron2.
    cfg.MODEL.RETINANET.P6_IN_FEATURE = ""
    # With ROI_HEADS.NAME "OpenMMLabCascadeROIHeads": factor of each stage's losses, as published;
    # Detectron2's own CascadeROIHeads scales gradients instead and does not read it.
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS = [1.0, 0.5, 0.25]

    # The image classifier: MODEL.META_ARCHITECTURE "ImageClassifier" trains all of
    # MODEL.TIMM.NAME, with its own classifier, on images with one label each.
    cfg.MODEL.CLASSIFIER = CN()
    # Classes of the data; 1,000 are ImageNet's.
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 1000
    # Stochastic depth (arXiv 1603.09382): how likely the deepest block is left out for an image in
    # training, less for those before it, down to 0 for the first.
    cfg.MODEL.CLASSIFIER.DROP_PATH_RATE = 0.0
    # How likely a feature is zeroed before the classifier in training.
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.0
    # "bce": binary cross-entropy, each class by itself, as in "ResNet strikes back"; "ce":
    # cross-entropy.
    cfg.MODEL.CLASSIFIER.LOSS = "bce"
    # Part of each label that is spread over all classes, including the right one.
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.0
    # With LOSS "bce": a class that is mixed in with more than this share counts as 1, any other as
    # 0; a negative value keeps the shares. The authors' command lines have 0.2.
    cfg.MODEL.CLASSIFIER.TARGET_THRESH = 0.2
    # timm's train.py smooths a label before TARGET_THRESH makes it 0 or 1, which undoes it. True
    # smooths after that, for a procedure that has both.
    cfg.MODEL.CLASSIFIER.SMOOTH_AFTER_THRESH = False

    # Keep weights and features of the convolutions in the channels-last memory format; the same
    # values, and faster convolutions on the CPU.
    cfg.MODEL.CHANNELS_LAST = False
    # Compile backbone and FPN with torch.compile for training. The first iterations take minutes,
    # and on the CPU it needs a C++ compiler; checkpoints are the same with and without it.
    cfg.MODEL.COMPILE = False
    # Training on one GPU: record the forward and the backward pass of backbone, FPN and dense head,
    # of a classifier of all of it, as CUDA graphs, for up to 8 sizes of batches that come more than
    # once. Nothing is padded for it, so a fixed size (INPUT.LSJ) gains most. It needs
    # torch 2.14, or DATALOADER.NUM_WORKERS 0.
    cfg.MODEL.CUDA_GRAPHS = False

    # A running average of the weights and buffers over the training (EMA), by timm's ModelEmaV3. It
    # is in each checkpoint as "ema", is evaluated alongside the model with "ema/" before the
    # metrics, and is written at the end as model_final_ema.pth, which MODEL.WEIGHTS takes like any
    # other. SOLVER.BEST_METRIC "ema/bbox/AP" makes model_best.pth one of averaged weights.
    # "ResNet strikes back" and the published detectors were trained without.
    cfg.MODEL_EMA = CN()
    cfg.MODEL_EMA.ENABLED = False
    # How much of the average stays in each step of the optimizer; timm's default. The average is
    # over about 1 / (1 - DECAY) steps, so a short training needs a lower value, or WARMUP.
    cfg.MODEL_EMA.DECAY = 0.9999
    # Raise the decay up to DECAY by timm's rule, 1 - (1 + step) ** (-2 / 3).
    cfg.MODEL_EMA.WARMUP = False
    # Where it is kept: "" on the model's device, or "cpu", which saves GPU memory and costs a copy
    # of the weights in each step.
    cfg.MODEL_EMA.DEVICE = ""

    # "SGD": Detectron2's own builder, untouched. "AdamW": same parameter groups, decoupled decay.
    # "LAMB" (arXiv 1904.00962): timm's, as in its train.py with --opt lamb.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # AdamW's and LAMB's coefficients of the running averages of the gradient and of its square.
    cfg.SOLVER.BETAS = [0.9, 0.999]
    cfg.SOLVER.LAMB = CN()
    # Added to the denominator, and the norm of the gradient of all parameters together above which
    # it is scaled down; with 0 it never is. The defaults of timm.optim.Lamb, which timm's train.py
    # does not change. SOLVER.CLIP_GRADIENTS clips before that, each parameter separately.
    cfg.SOLVER.LAMB.EPS = 1e-6
    cfg.SOLVER.LAMB.MAX_GRAD_NORM = 1.0
    # Which parameters are not decayed. "detectron2": the norm layers' have WEIGHT_DECAY_NORM, the
    # biases WEIGHT_DECAY_BIAS where that is set, and all others WEIGHT_DECAY. "timm", as "ResNet
    # strikes back" was trained: none of at most one dimension, no bias, and none that the model
    # names in no_weight_decay(); WEIGHT_DECAY_NORM and WEIGHT_DECAY_BIAS are then 0 or not set.
    # "auto": "timm" for LAMB, "detectron2" for the others.
    cfg.SOLVER.DECAY_FILTER = "auto"
    # Length, warm-up and steps of the schedule in epochs, each instead of MAX_ITER, WARMUP_ITERS
    # and STEPS, which train_net.py fills in then from the number of images and IMS_PER_BATCH; 0 and
    # [] do not change them. An epoch is as many samples as there are images to train on, also
    # where a sampler repeats images. Of the two, the key that is written last counts.
    # The schedule itself stays Detectron2's, so that a run can be stopped and resumed anywhere: the
    # rate changes with each iteration, where timm's train.py changes it once an epoch without
    # --sched-on-updates. By update, timm's cosine is the same; only its warm-up differs, which
    # rises to BASE_LR itself, from an absolute rate instead of BASE_LR * WARMUP_FACTOR, while
    # Detectron2's rises to the value of the cosine at that time (after 5 epochs of 100: 0.994).
    cfg.SOLVER.MAX_EPOCHS = 0
    cfg.SOLVER.WARMUP_EPOCHS = 0
    cfg.SOLVER.STEP_EPOCHS = []
    # Compute each batch in this many parts, one after the other, with the memory for one part: each
    # step of the optimizer has the gradients of the complete batch of SOLVER.IMS_PER_BATCH images.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # Precision of SOLVER.AMP.ENABLED: "bfloat16", "float16", or "auto": bfloat16 where the GPU
    # computes in it, else float16. On the CPU only "bfloat16" by name switches AMP on. "native" is
    # "auto" that also does where the processor computes in bfloat16 (AMX or AVX512-BF16).
    cfg.SOLVER.AMP.DTYPE = "auto"

    # Large-scale jitter, as of Detectron2's new_baselines, in training instead of MIN_SIZE_TRAIN:
    # the image is scaled to fit into SIZE x SIZE pixels times a factor from MIN_SCALE ...
    # MAX_SCALE, and cut or padded to SIZE x SIZE. RANDOM_FLIP holds; CROP is another augmentation.
    cfg.INPUT.LSJ = CN()
    cfg.INPUT.LSJ.ENABLED = False
    cfg.INPUT.LSJ.MIN_SCALE = 0.1
    cfg.INPUT.LSJ.MAX_SCALE = 2.0
    cfg.INPUT.LSJ.SIZE = 1024

    # A detector's images that cannot be decoded, such as a JPEG that is cut at its end. Those of
    # DATASETS.TEST are decoded once before a training. "auto": training skips them, up to
    # DATALOADER.MAX_BAD_IMAGES, and for an evaluation they are an error, as its AP would be of
    # other images. "error": for training, too. "skip": evaluations and validation losses leave out
    # these images with their objects, and count them in the log and as images/skipped. "partial":
    # JPEG files are read as far as they go, with the rest in gray; others are as in "auto".
    cfg.INPUT.DAMAGED_IMAGES = "auto"

    # COCO-format data sets to register under names of your own, without any Python:
    # [[name, annotation file, image folder], ...]; use the names in DATASETS.TRAIN and .TEST.
    # [name, folder] is an unzipped export of Roboflow: name_train, name_val and name_test.
    cfg.DATASETS.COCO_JSON = []
    # Images with one label each, to register under names of your own: [[name, folder], ...]; the
    # folder has one folder per class, named like the class.
    cfg.DATASETS.IMAGE_FOLDER = []
    # The same for sources of timm's create_dataset: [[name, timm's name, root, split], ...], as
    # ["pets", "hfds/timm/oxford-iiit-pet", "", "train"] or, for a tar file or a folder of them,
    # ["archive", "", "datasets/train.tar", ""], or WebDataset's shards, ["web", "wds/", "datasets",
    # "train-{0000..0015}.tar"]. Images are read by index, so that order, resuming and several
    # processes work as for folders; sources that timm can only stream (tfds/, hfids/) are refused.
    cfg.DATASETS.TIMM = []
    # Keypoints that are swapped when an image is flipped horizontally: [[left name, right name],
    # ...]. []: those whose names differ only in left and right, or l and r, as left_eye and
    # right_eye. Of the data sets in COCO_JSON, with MODEL.KEYPOINT_ON.
    cfg.DATASETS.KEYPOINT_FLIP_PAIRS = []
    # Folder for copies of images from https:// or a bucket; "" is a folder below $FVCORE_CACHE (by
    # default ~/.torch/iopath_cache), "off" keeps none.
    cfg.DATASETS.CACHE = ""
    # Size of these copies in 10^9 bytes; those used longest ago go first. 0 keeps none.
    cfg.DATASETS.IMAGE_CACHE_GB = 10
    # Names of the classes in the order of the model's outputs, and their category ids in the
    # annotation file. train_net.py fills them in from the data, so that OUTPUT_DIR/config.yaml
    # names a model's classes where the data is missing.
    cfg.DATASETS.CLASS_NAMES = []
    cfg.DATASETS.CLASS_IDS = []

    # The image classifier's images, in training and evaluation; all by timm's transforms.
    cfg.INPUT.CLASSIFIER = CN()
    # Side of the square that is trained on, and of the one that is evaluated on, in pixels.
    cfg.INPUT.CLASSIFIER.TRAIN_SIZE = 224
    cfg.INPUT.CLASSIFIER.TEST_SIZE = 224
    # Evaluation takes this part of the shorter side, from the middle: at 0.95 the image is resized
    # to 224 / 0.95 = 235 pixels and cut to 224.
    cfg.INPUT.CLASSIFIER.TEST_CROP_RATIO = 0.875
    # How images are resized, in training and evaluation: "bicubic", "bilinear", or "random": one of
    # the two for each image in training, bilinear in evaluation.
    cfg.INPUT.CLASSIFIER.INTERPOLATION = "bicubic"
    # The random resized crop: its area as part of the image's, and its width to its height.
    cfg.INPUT.CLASSIFIER.CROP_SCALE = [0.08, 1.0]
    cfg.INPUT.CLASSIFIER.CROP_RATIO = [3 / 4, 4 / 3]
    # How likely an image is mirrored.
    cfg.INPUT.CLASSIFIER.FLIP_PROB = 0.5
    # A policy of timm's: "rand-m7-mstd0.5-inc1" is RandAugment of magnitude 7 with noise 0.5, where
    # a higher magnitude always changes more; "" for none.
    cfg.INPUT.CLASSIFIER.AUTO_AUGMENT = ""
    # Strength of random brightness, contrast and saturation; with AUTO_AUGMENT there is none.
    cfg.INPUT.CLASSIFIER.COLOR_JITTER = 0.0
    # Repeated augmentation (arXiv 1902.05509): each image comes this many times in a row, augmented
    # again, and an epoch has as many samples as before, so only a part of the images.
    cfg.INPUT.CLASSIFIER.REPEATS = 1
    # Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): parameter of the Beta distribution
    # that the share is drawn from; 0 is off.
    cfg.INPUT.CLASSIFIER.MIXUP_ALPHA = 0.0
    cfg.INPUT.CLASSIFIER.CUTMIX_ALPHA = 0.0
    # How likely images are mixed at all, and where both are on, how likely by CutMix.
    cfg.INPUT.CLASSIFIER.MIX_PROB = 1.0
    cfg.INPUT.CLASSIFIER.SWITCH_PROB = 0.5
    # This many images of a batch share one draw, the first with the last, the second with the last
    # but one; 0, or more than the batch: all of it. The draw depends only on the seed and the place
    # in the data, so any number of processes mixes the same images.
    cfg.INPUT.CLASSIFIER.MIX_GROUP = 0
    # Batch size of each process in evaluation.
    cfg.INPUT.CLASSIFIER.TEST_BATCH = 64

    # Evaluations of TEST.EVAL_PERIOD compute the losses of training on DATASETS.TEST, too, as
    # val_total_loss, val_loss_cls and so on. It takes about as long as the evaluation itself.
    cfg.TEST.VAL_LOSS = False
    # --eval-only evaluates the model as rsb_d2.optimize_for_inference makes it in float32: the same
    # detections, faster. During training, and for image classifiers, the model itself is evaluated.
    cfg.TEST.OPTIMIZE = False
    # Metric of the evaluations, named as in metrics.json, by which model_best.pth is chosen; "" for
    # no such file. Nor is there one where TEST.EVAL_PERIOD is 0: the last model is the result.
    # For data that is not evaluated by boxes, the evaluator's first metric replaces the default:
    # segm/AP (Cityscapes' instances), sem_seg/IoU (its labels), sem_seg/mIoU.
    cfg.SOLVER.BEST_METRIC = "bbox/AP"
    # Whether a higher or a lower value of it is better: "max", "min", or "auto": "min" for a loss,
    # such as those of TEST.VAL_LOSS, "max" for the metrics of evaluators.
    cfg.SOLVER.BEST_MODE = "auto"
    # End the training when this many evaluations in a row had no better SOLVER.BEST_METRIC;
    # 0 never ends it early.
    cfg.SOLVER.EARLY_STOP_PATIENCE = 0

    # Where metrics, config and pictures of a training also go, in addition to TensorBoard and
    # metrics.json: "wandb" (Weights & Biases), "mlflow". Needs the packages of these names.
    cfg.LOGGERS = ()

    # How many of the periodic checkpoints to keep, the newest ones; 0 keeps all. The final and the
    # best one are always kept.
    cfg.SOLVER.CHECKPOINT_KEEP = 0
    # --resume refuses a config that differs from the run's own in the model, the classes, the data,
    # the batch, the seed or the optimizer; True continues with the new values.
    cfg.SOLVER.RESUME_WITH_CHANGES = False
    # A bad image is skipped in training, with a warning; more than this many end the training.
    cfg.DATALOADER.MAX_BAD_IMAGES = 100
    return cfg
