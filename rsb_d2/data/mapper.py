"""Detectron2's mapper and its augmentations, with checked images and annotations."""

import copy
import inspect
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from .dataset_dicts import annotation_reason, keypoint_reason, mask_reason, standardize
from .images import BadImageError, read_image, reads_partial_images


class CheckedDatasetMapper(DatasetMapper):
    """Detectron2's mapper, with one error for everything that can be wrong with an image.

    Use it instead of ``DatasetMapper``, with the same arguments and results. In training, a loader
    can continue after the error; in evaluation the error must stop the run, since a metric without
    the image would be wrong.

    Args:
        args, kwargs: of ``DatasetMapper``.
        partial (bool): as of :func:`read_image`.
    """

    @configurable
    def __init__(self, *args, partial: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self._partial = partial

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        if not is_train and cfg.MODEL.KEYPOINT_ON:
            # The stock method asks for the keypoints of DATASETS.TRAIN, which need not be there.
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.KEYPOINT_ON = False
        ret = super().from_config(cfg, is_train)
        ret["partial"] = reads_partial_images(cfg)
        if is_train and uses_large_scale_jitter(cfg):
            ret["augmentations"] = build_augmentation(cfg, is_train)
            # As where Detectron2 crops: boxes of the remaining parts of the masks.
            ret["recompute_boxes"] = cfg.MODEL.MASK_ON
        return ret

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """Read an image and transform it and its annotations.

        Returns:
            dict: for a detector: ``image``, a uint8 tensor (3, H, W), and in training
            ``instances``.

        Raises:
            BadImageError: if the image cannot be used (see :func:`read_image`), if nothing is left
                of it when it is resized, or if an annotation cannot be used: a box that is not
                finite, a class below 0, a polygon of less than three points, a mask of another
                size.
        """
        dataset_dict = standardize(copy.deepcopy(dataset_dict))
        path = dataset_dict["file_name"]
        size = None
        if "width" in dataset_dict and "height" in dataset_dict:
            size = dataset_dict["width"], dataset_dict["height"]
        try:
            image = read_image(path, self.image_format, size, partial=self._partial)
        except BadImageError as e:
            if self.is_train:
                raise
            hint = "write INPUT.DAMAGED_IMAGES skip to evaluate without such images"
            raise BadImageError(path, f"{e.reason}; {hint}") from None
        utils.check_image_size(dataset_dict, image)  # fills in the size where there is none
        sem_seg = None
        if "sem_seg_file_name" in dataset_dict:
            sem_seg = read_image(dataset_dict.pop("sem_seg_file_name"), "L").squeeze(2)

        if self.is_train:
            self._check_annotations(dataset_dict)
        try:
            return self._transform(dataset_dict, image, sem_seg)
        except (ValueError, TypeError, KeyError, IndexError, AssertionError) as e:
            reason = f"it cannot be transformed ({type(e).__name__}, {e})"
            if min(image.shape[:2]) * 20 < max(image.shape[:2]):
                reason = (
                    f"its shape is too long and narrow to be resized ({image.shape[1]} x "
                    f"{image.shape[0]} pixels)"
                )
            raise BadImageError(path, reason) from None

    def _transform(
        self, dataset_dict: Dict[str, Any], image: np.ndarray, sem_seg: np.ndarray | None
    ) -> Dict[str, Any]:
        """Do the rest of the stock ``__call__``, after the image is read."""
        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        image, sem_seg = aug_input.image, aug_input.sem_seg
        image_shape = image.shape[:2]
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(sem_seg.astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(
                dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict

    def _transform_annotations(
        self, dataset_dict: Dict[str, Any], transforms: T.TransformList, image_shape: Tuple
    ) -> None:
        if self.use_keypoint:
            unlabeled = [0.0] * (3 * len(self.keypoint_hflip_indices))
            for annotation in dataset_dict["annotations"]:
                annotation["keypoints"] = annotation.get("keypoints") or list(unlabeled)
        super()._transform_annotations(dataset_dict, transforms, image_shape)

    def _check_annotations(self, dataset_dict: Dict[str, Any]) -> None:
        """For data sets that were not checked when they were registered."""
        annotations = [a for a in dataset_dict.get("annotations", ()) if not a.get("iscrowd", 0)]
        for index, annotation in enumerate(annotations):
            reason = annotation_reason(annotation)
            if reason is None and self.use_instance_mask:
                size = [dataset_dict["height"], dataset_dict["width"]]
                reason = mask_reason(annotation, size, self.instance_mask_format)
            if reason is None and self.use_keypoint:
                reason = keypoint_reason(annotation, len(self.keypoint_hflip_indices))
            if reason is not None:
                raise BadImageError(
                    dataset_dict["file_name"], f"object {index} of its annotations has {reason}"
                )


# ---- augmentation ----


# The label of padded pixels. Detectron2's main pads with it, as its data sets ignore it.
_IGNORED_LABEL = 255


class FixedSizeCrop(T.FixedSizeCrop):
    """Detectron2 0.6's, which pads a map of labels with class 0, as its main branch does it."""

    def _get_pad(self, image):
        pad = super()._get_pad(image)
        pad.seg_pad_value = _IGNORED_LABEL
        return pad


if "seg_pad_value" in inspect.signature(T.FixedSizeCrop.__init__).parameters:
    FixedSizeCrop = T.FixedSizeCrop


def build_augmentation(cfg: CfgNode, is_train: bool) -> List[T.Augmentation]:
    """Build the augmentations that resize, crop and flip images.

    With ``INPUT.LSJ.ENABLED``, training images are jittered in scale as in Detectron2's
    ``new_baselines``, and ``INPUT.MIN_SIZE_TRAIN``, ``.MAX_SIZE_TRAIN`` and
    ``.MIN_SIZE_TRAIN_SAMPLING`` are not read.
    """
    if not (is_train and uses_large_scale_jitter(cfg)):
        return utils.build_augmentation(cfg, is_train)
    lsj, flip = cfg.INPUT.LSJ, cfg.INPUT.RANDOM_FLIP
    augmentations = [
        T.ResizeScale(
            min_scale=lsj.MIN_SCALE,
            max_scale=lsj.MAX_SCALE,
            target_height=lsj.SIZE,
            target_width=lsj.SIZE,
        ),
        FixedSizeCrop(crop_size=(lsj.SIZE, lsj.SIZE)),
    ]
    if flip != "none":
        augmentations.append(
            T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")
        )
    return augmentations


def uses_large_scale_jitter(cfg: CfgNode) -> bool:
    """Whether ``INPUT.LSJ.ENABLED`` is set; it is not in a config without this project's keys."""
    return "LSJ" in cfg.INPUT and cfg.INPUT.LSJ.ENABLED
