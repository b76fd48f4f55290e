"""COCO's average precision by faster-coco-eval, in Detectron2's evaluator."""

import copy
import itertools
import json
import logging
import os
from collections import defaultdict
from typing import Any, Dict, Iterator, List, Sequence

import numpy as np
import pycocotools.mask as mask_util
from detectron2 import evaluation
from detectron2.data import MetadataCatalog
from detectron2.evaluation.coco_evaluation import COCOeval_opt, _evaluate_predictions_on_coco
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from faster_coco_eval import COCOeval_faster
from faster_coco_eval.faster_eval_api_cpp import COCOevalEvaluateAccumulate
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from ..data.class_table import class_table
from ..data.coco_conversion import convert_to_coco_file
from ..data.dataset_dicts import plain, whole_number
from ..errors import UserError
from ..memory import garbage_collection_paused
from .predictions import write_dataset_name

logger = logging.getLogger(__name__)

# Of masks whose areas are asked for at once: pycocotools counts them in eight bits.
_CHUNK = 200
# The number of the class that is evaluated, whatever its id is.
_CLASS = 1


class COCOEvaluator(evaluation.COCOEvaluator):
    """Detectron2's evaluator with a faster evaluation of boxes and masks; the same figures.

    Arguments are Detectron2's; ``use_fast_impl`` concerns keypoints alone, which are evaluated as
    there. Image ids may be numbers or strings.
    """

    def __init__(self, dataset_name, tasks=None, distributed=True, output_dir=None, **kwargs):
        if output_dir:
            ensure_json_file(dataset_name, output_dir)
        if COCOeval_opt is COCOeval:
            # Detectron2 is installed without its C++, and would log that at every evaluation.
            kwargs["use_fast_impl"] = False
        super().__init__(dataset_name, tasks, distributed, output_dir, **kwargs)

    def process(self, inputs, outputs):
        ids = [plain(input.get("image_id")) for input in inputs]
        if None in ids:
            raise UserError(
                f"data set {self._metadata.name}: an image has no image_id, by which its "
                "detections are compared with its objects"
            )
        super().process(
            [{**input, "image_id": i} for input, i in zip(inputs, ids)],
            list(map(_with_own_keypoints, outputs)),
        )

    def _eval_predictions(self, predictions, img_ids=None):
        if self._output_dir:
            write_dataset_name(self._output_dir, self._metadata.name)
        results = list(itertools.chain(*(p["instances"] for p in predictions)))
        tasks = sorted(self._tasks or self._tasks_from_predictions(results))
        self._use_dataset_ids(results)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            logger.info(f"Saving results to {path}")
            with PathManager.open(path, "w") as f:
                f.write(json.dumps(results))
        if not self._do_evaluation:
            logger.info("The annotation file has no annotations: nothing is evaluated.")
            return
        for task in tasks:
            evaluated = None
            if results and task == "keypoints":
                evaluated = self._evaluate_keypoints(results, img_ids)
            elif results:
                evaluated = evaluate_detections(
                    self._coco_api, results, task, img_ids, self._max_dets_per_image
                )
            self._results[task] = self._derive_coco_results(
                evaluated, task, class_names=self._names_by_id()
            )

    def _evaluate_keypoints(self, results: List[Dict[str, Any]], img_ids: Any) -> COCOeval:
        num_keypoints = len(results[0]["keypoints"]) // 3
        sigmas = keypoint_sigmas(self._kpt_oks_sigmas, num_keypoints)
        fill_keypoints(self._coco_api, num_keypoints)
        return _evaluate_predictions_on_coco(
            self._coco_api,
            results,
            "keypoints",
            kpt_oks_sigmas=sigmas,
            use_fast_impl=self._use_fast_impl,
            img_ids=img_ids,
            max_dets_per_image=self._max_dets_per_image,
        )

    def _category_ids(self) -> Dict[int, Any]:
        """The annotation file's category ids by the model's class numbers; empty if the same."""
        numbers = self._metadata.get("thing_dataset_id_to_contiguous_id", {})
        return {number: whole_number(category_id) for category_id, number in numbers.items()}

    def _names_by_id(self) -> List[str] | None:
        """The names of the classes in the order of their category ids, as the figures are."""
        names, ids = self._metadata.get("thing_classes"), self._category_ids()
        if names is None or len(names) != len(ids):
            return names
        return [names[number] for number in sorted(ids, key=ids.get)]

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        """Return Detectron2's figures; in its table, class names such as "True" raise an error."""
        results = super()._derive_coco_results(coco_eval, iou_type)
        if coco_eval is None or class_names is None or len(class_names) <= 1:
            return results
        # (IoU, recall, class, area, limit): of all areas, and of the last limit
        precisions = coco_eval.eval["precision"][:, :, :, 0, -1]
        aps = []
        for k in range(len(class_names)):
            precision = precisions[:, :, k]
            precision = precision[precision > -1]
            aps.append(float(100 * np.mean(precision)) if precision.size else float("nan"))
        table = class_table(class_names, [f"{ap:.3f}" for ap in aps], "AP")
        self._logger.info(f"Per-category {iou_type} AP: \n{table}")
        results.update((f"AP-{name}", ap) for name, ap in zip(class_names, aps))
        return results

    def _use_dataset_ids(self, results: List[Dict[str, Any]]) -> None:
        """Turn the model's class numbers into the annotation file's category ids, in place."""
        ids = self._category_ids()
        if not ids:
            return
        for result in results:
            number = result["category_id"]
            if number not in ids:
                raise UserError(
                    f"the model predicts class {number}, but the data set has the classes 0 to "
                    f"{len(ids) - 1} only; MODEL.ROI_HEADS.NUM_CLASSES must be {len(ids)}"
                )
            result["category_id"] = ids[number]


def ensure_json_file(dataset_name: str, folder: str, *, with_masks: bool = False) -> None:
    """Convert a data set that is not in COCO's format, once in a process.

    Args:
        dataset_name (str): a registered data set, whose metadata gets a ``json_file``.
        folder (str): for the converted file.
        with_masks (bool): whether each object needs a mask.

    Raises:
        UserError: as :func:`rsb_d2.data.coco_conversion.convert_to_coco_file`.
    """
    metadata = MetadataCatalog.get(dataset_name)
    # Detectron2's name for it.
    path = os.path.join(folder, f"{dataset_name}_coco_format.json")
    if hasattr(metadata, "json_file"):
        if metadata.json_file != path or os.path.isfile(path):
            return
        del metadata.json_file
    convert_to_coco_file(dataset_name, path, with_masks=with_masks)
    metadata.json_file = path


def _with_own_keypoints(output: Dict[str, Any]) -> Dict[str, Any]:
    instances = output.get("instances")
    if instances is None or not instances.has("pred_keypoints"):
        return output
    return {**output, "instances": with_own_keypoints(instances)}


def with_own_keypoints(instances: Instances) -> Instances:
    """Copy what Detectron2's ``instances_to_coco_json`` changes in place.

    Args:
        instances (Instances): detections; not changed.

    Returns:
        Instances: the same, with ``pred_keypoints`` of its own where there are some.
    """
    copied = Instances(instances.image_size, **instances.get_fields())
    if copied.has("pred_keypoints"):
        copied.pred_keypoints = copied.pred_keypoints.clone()
    return copied


def keypoint_sigmas(sigmas: Sequence[float], num_keypoints: int) -> List[float]:
    """The sigmas of the object keypoint similarity (https://cocodataset.org/#keypoints-eval).

    Args:
        sigmas (sequence of float): ``TEST.KEYPOINT_OKS_SIGMAS``; empty for the default: for 17
            keypoints those of COCO's persons, otherwise the mean of those for each keypoint.
        num_keypoints (int): K.

    Returns:
        list[float]: of each keypoint.

    Raises:
        UserError: if there are sigmas, but not K of them.
    """
    if not len(sigmas):
        of_persons = Params("keypoints").kpt_oks_sigmas
        if num_keypoints == len(of_persons):
            return of_persons.tolist()
        return [round(float(of_persons.mean()), 3)] * num_keypoints
    if len(sigmas) != num_keypoints:
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {len(sigmas)} values, but there are {num_keypoints} "
            "keypoints; write one value for each, or [] for the default"
        )
    return list(sigmas)


def fill_keypoints(truth: COCO, num_keypoints: int) -> None:
    """Give each object of the ground truth what pycocotools needs to evaluate keypoints.

    An object without keypoints gets unlabeled ones, as in COCO's files: it is ignored.

    Args:
        truth (COCO): its annotations are changed in place.
        num_keypoints (int): K.
    """
    for annotation in truth.anns.values():
        if len(annotation.get("keypoints") or ()) != 3 * num_keypoints:
            annotation.update(keypoints=[0] * (3 * num_keypoints), num_keypoints=0)
        elif type(annotation.get("num_keypoints")) is not int:
            annotation["num_keypoints"] = sum(v > 0 for v in annotation["keypoints"][2::3])


def evaluate_detections(
    truth: COCO,
    results: List[Dict[str, Any]],
    task: str,
    img_ids: Sequence[int] | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
) -> "DetectionEval":
    """Compute COCO's figures of boxes or masks.

    Args:
        truth (pycocotools.coco.COCO): the ground truth; it is not changed.
        results (list[dict]): detections in COCO's result format; they are not changed.
        task (str): ``"bbox"`` or ``"segm"``.
        img_ids (sequence of int): the images to evaluate; None for all.
        max_dets (sequence of int): the best so many detections of an image and a class count, for
            the three average recalls; the last one for all other figures.

    Returns:
        DetectionEval: evaluated, with the figures in 0 ... 1, or -1 where there is no object, in
        ``stats`` and, of each class, in ``eval["precision"]`` and ``eval["recall"]``, as
        ``COCOeval`` has them.

    Raises:
        UserError: if masks are to be evaluated and an annotation has none.
        ValueError: if a result is of an image that the ground truth does not have.
    """
    with garbage_collection_paused():
        evaluated = DetectionEval(truth, results, task)
        evaluated.params.maxDets = list(max_dets)
        if img_ids is not None:
            evaluated.params.imgIds = list(img_ids)
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated


class DetectionEval(COCOeval_faster):
    """faster-coco-eval's ``COCOeval_faster`` without the Python that took most of its time.

    Matching and the curves of precision and recall are the library's compiled code, which is
    called for one class at a time, with the images alone that have to do with it: the classes are
    independent, and all at once are too much for the processor's caches. Other than in the
    library, records are grouped in one pass, the areas of masks computed in one go, and masks
    compared as they are stored, by pycocotools, rather than decoded first.
    """

    def __init__(self, truth: COCO, results: List[Dict[str, Any]], task: str):
        """
        Args:
            truth, results, task: as of :func:`evaluate_detections`.
        """
        try:
            super().__init__(truth, None, task, print_function=logger.info)
        except TypeError:  # ids are sorted
            raise UserError("some image ids are numbers and some are strings") from None
        unknown = {r["image_id"] for r in results} - truth.imgs.keys()
        if unknown:
            some = next(iter(unknown))
            raise ValueError(f"the ground truth has no image {some}, but there are results")
        self._results = results

    def evaluate(self) -> None:
        """Match the detections to the ground truth and accumulate, class by class."""
        p = self.params
        p.imgIds, p.catIds = sorted(set(p.imgIds)), sorted(set(p.catIds))
        p.maxDets = sorted(p.maxDets)
        # By class and by the image's place: the library takes ids for numbers of double precision.
        truth, found = (defaultdict(lambda: defaultdict(list)) for _ in range(2))
        places = {image: place for place, image in enumerate(p.imgIds)}
        for image, place in places.items():
            for a in self.cocoGt.imgToAnns.get(image, ()):
                truth[a["category_id"]][place].append(a)
        for number, (r, area) in enumerate(zip(self._results, self._areas()), start=1):
            if r["image_id"] in places:
                record = {"id": number, "area": area, "score": r["score"], "of": r}
                found[r["category_id"]][places[r["image_id"]]].append(record)
        parts = [self._evaluate_class(truth[c], found[c]) for c in p.catIds]
        counts = list(parts[0]["counts"])
        counts[2] = len(parts)
        self.eval = {
            "params": p,
            "counts": counts,  # of IoUs, recalls, classes, areas and limits
            "precision": np.concatenate([part["precision"] for part in parts], axis=2),
            "scores": np.concatenate([part["scores"] for part in parts], axis=2),
            "recall": np.concatenate([part["recall"] for part in parts], axis=1),
        }

    def _areas(self) -> Iterator[float]:
        if self.params.iouType == "bbox":
            return (r["bbox"][2] * r["bbox"][3] for r in self._results)
        masks = [r["segmentation"] for r in self._results]
        chunks = (masks[i : i + _CHUNK] for i in range(0, len(masks), _CHUNK))
        return (area for chunk in chunks for area in mask_util.area(chunk).tolist())

    def _evaluate_class(self, truth: Dict[int, list], found: Dict[int, list]) -> Dict[str, Any]:
        self.gt_dataset.clean()
        self.dt_dataset.clean()
        for image, annotations in truth.items():
            for a in annotations:
                crowd = int(a.get("iscrowd", 0))
                record = {"id": a["id"], "area": a["area"], "iscrowd": crowd, "ignore": crowd}
                self.gt_dataset.append_ref(image, _CLASS, record)
        for image, records in found.items():
            for record in records:
                self.dt_dataset.append_ref(image, _CLASS, record)
        params = copy.copy(self.params)
        params.catIds, params.imgIds = [_CLASS], sorted(truth.keys() | found.keys())
        # The compiled code takes a list of images, each a list of classes.
        ious = [[self._ious(truth.get(i), found.get(i))] for i in params.imgIds]
        return COCOevalEvaluateAccumulate(
            params, ious, self.gt_dataset, self.dt_dataset, params.imgIds, params.catIds, True
        )

    def _ious(self, truth: Any, found: Any) -> Any:
        """As in pycocotools: a row for each detection, the best first."""
        if not truth or not found:
            return []
        # Equal scores stay in the order in which they came.
        order = np.argsort([-d["score"] for d in found], kind="mergesort")
        results = [found[i]["of"] for i in order[: self.params.maxDets[-1]]]
        crowd = [int(a.get("iscrowd", 0)) for a in truth]
        if self.params.iouType == "bbox":
            return mask_util.iou(_boxes(results), _boxes(truth), crowd)
        masks = [self._mask(a) for a in truth]
        return mask_util.iou([r["segmentation"] for r in results], masks, crowd)

    def _mask(self, annotation: Dict[str, Any]) -> Dict[str, Any]:
        if not annotation.get("segmentation"):
            raise UserError(
                f"DATASETS.TEST: annotation {annotation['id']} of image {annotation['image_id']} "
                "has no mask; add its 'segmentation', or evaluate boxes only (MODEL.MASK_ON False)"
            )
        return self.cocoGt.annToRLE(annotation)


def _boxes(records: List[Dict[str, Any]]) -> np.ndarray:
    return np.array([r["bbox"] for r in records], dtype=np.float64)
