"""COCO's metrics, computed by hotcoco in Detectron2's evaluator."""

import contextlib
import io
import itertools
import json
import logging
import os
import warnings
from typing import Any, Dict, List, NamedTuple, Sequence

import hotcoco
import numpy as np
from detectron2 import evaluation
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from pycocotools.cocoeval import Params

from ..data.dataset_dicts import plain, whole_number
from ..data.datasets import class_table, convert_to_coco_file
from ..data.predictions import write_dataset_name
from ..errors import UserError, count
from ..memory import garbage_collection_paused

logger = logging.getLogger(__name__)


class COCOEvaluator(evaluation.COCOEvaluator):
    """Detectron2's evaluator with the same metrics from a faster library.

    The arguments are Detectron2's; ``use_fast_impl`` has no effect. Image ids may be numbers or
    strings. Images whose ids are in ``skipped`` are left out with their objects, and counted.
    """

    def __init__(
        self, dataset_name, tasks=None, distributed=True, output_dir=None, skipped=(), **kwargs
    ):
        if output_dir:
            ensure_json_file(dataset_name, output_dir)
        kwargs["use_fast_impl"] = False
        super().__init__(dataset_name, tasks, distributed, output_dir, **kwargs)
        self._skipped = {plain(i) for i in skipped}

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
            write_dataset_name(self._output_dir, self._metadata.name, self._skipped)
        results = list(itertools.chain(*(p["instances"] for p in predictions)))
        tasks = sorted(self._tasks or self._tasks_from_predictions(results))
        self._use_dataset_ids(results)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            logger.info(f"Saving results to {path}")
            with PathManager.open(path, "w") as f:
                f.write(json.dumps(results))
        if self._skipped and img_ids is None:
            all_ids = [image["id"] for image in self._coco_api.dataset["images"]]
            img_ids = [i for i in all_ids if plain(i) not in self._skipped]
            skipped = len(all_ids) - len(img_ids)
            logger.warning(
                f"{self._metadata.name}: evaluated on {len(img_ids)} of {len(all_ids)} images; "
                f"{count(skipped, 'damaged image')} skipped (INPUT.DAMAGED_IMAGES)"
            )
            self._results["images"] = {"skipped": skipped}
        if not self._do_evaluation:
            logger.info("The annotation file has no annotations: nothing is evaluated.")
            return
        for task in tasks:
            evaluated = None
            if results:
                evaluated = self._evaluate(results, task, img_ids)
            self._results[task] = self._derive_coco_results(
                evaluated, task, class_names=self._names_by_id()
            )

    def _evaluate(self, results: List[Dict[str, Any]], task: str, img_ids: Any) -> "Figures":
        truth = self._coco_api.dataset
        if task != "keypoints":
            return evaluate_detections(truth, results, task, img_ids, self._max_dets_per_image)
        sigmas = keypoint_sigmas(self._kpt_oks_sigmas, len(results[0]["keypoints"]) // 3)
        return evaluate_detections(truth, results, task, img_ids, sigmas=sigmas)

    def _category_ids(self) -> Dict[int, Any]:
        """Return category ids of the annotation file by class number; empty if they are equal."""
        numbers = self._metadata.get("thing_dataset_id_to_contiguous_id", {})
        return {number: whole_number(category_id) for category_id, number in numbers.items()}

    def _names_by_id(self) -> List[str] | None:
        """Return the class names in the order of their category ids, as in the results."""
        names, ids = self._metadata.get("thing_classes"), self._category_ids()
        if names is None or len(names) != len(ids):
            return names
        return [names[number] for number in sorted(ids, key=ids.get)]

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        """Return Detectron2's metrics; its own table fails for class names such as "True"."""
        results = super()._derive_coco_results(coco_eval, iou_type)
        if coco_eval is None or class_names is None or len(class_names) <= 1:
            return results
        # (IoU, recall, class, area, limit): all areas, the last limit
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
        """Replace class numbers by the annotation file's category ids, in place."""
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
    """Convert a data set that has no COCO file, once in a process, and set its ``json_file``."""
    metadata = MetadataCatalog.get(dataset_name)
    if not (metadata.get("json_file") or metadata.get("thing_classes")):
        DatasetCatalog.get(dataset_name)  # many loaders set the metadata
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
    """Copy the keypoints of detections, which ``instances_to_coco_json`` changes in place."""
    copied = Instances(instances.image_size, **instances.get_fields())
    if copied.has("pred_keypoints"):
        copied.pred_keypoints = copied.pred_keypoints.clone()
    return copied


def keypoint_sigmas(sigmas: Sequence[float], num_keypoints: int) -> List[float]:
    """Return the sigmas of the object keypoint similarity (https://cocodataset.org/#keypoints-eval).

    Args:
        sigmas (sequence of float): ``TEST.KEYPOINT_OKS_SIGMAS``; empty for the default: those of
            COCO's persons for 17 keypoints, otherwise their mean for each keypoint.
        num_keypoints (int): K.

    Returns:
        list[float]: one for each keypoint.

    Raises:
        UserError: if there are sigmas, but not K.
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


def evaluate_detections(
    truth: Dict[str, List[Dict[str, Any]]],
    results: List[Dict[str, Any]],
    task: str,
    img_ids: Sequence[Any] | None = None,
    max_dets: Sequence[int] | None = None,
    sigmas: Sequence[float] = (),
) -> "Figures":
    """Compute COCO's metrics of boxes, masks or keypoints.

    Args:
        truth (dict): a data set in COCO's format; not changed.
        results (list[dict]): detections in COCO's result format; not changed.
        task (str): ``"bbox"``, ``"segm"`` or ``"keypoints"``.
        img_ids (sequence): ids of the images to evaluate; None for all.
        max_dets (sequence of int): limits of detections in an image and class for the three average
            recalls; the last one is for all other metrics. None for 1, 10 and 100, and for 20 with
            keypoints.
        sigmas (sequence of float): one for each keypoint, as from :func:`keypoint_sigmas`.

    Returns:
        Figures

    Raises:
        UserError: if masks are evaluated and an annotation has none.
        ValueError: if a result belongs to an image that is not in the ground truth.
    """
    sizes = {image["id"]: image for image in truth["images"]}
    unknown = {r["image_id"] for r in results} - sizes.keys()
    if unknown:
        raise ValueError(f"the ground truth has no image {unknown.pop()}, but there are results")
    try:
        # hotcoco takes integer ids: positions among the sorted ids.
        images = {image_id: n for n, image_id in enumerate(sorted(sizes), start=1)}
    except TypeError:
        raise UserError("some image ids are numbers and some are strings") from None
    category_ids = sorted(category["id"] for category in truth["categories"])
    categories = {category_id: n for n, category_id in enumerate(category_ids, start=1)}
    evaluated_images = set(images if img_ids is None else img_ids)
    with garbage_collection_paused():
        objects = hotcoco.COCO(
            {
                "images": [
                    {
                        "id": n,
                        "height": sizes[i].get("height"),
                        "width": sizes[i].get("width"),
                    }
                    for i, n in images.items()
                ],
                "categories": [{"id": n, "name": str(n)} for n in categories.values()],
                "annotations": [
                    {
                        "id": n,
                        "image_id": images[a["image_id"]],
                        "category_id": categories[a["category_id"]],
                        "bbox": a["bbox"],
                        "area": a["area"],
                        "iscrowd": int(a.get("iscrowd", 0)),
                        **_task_fields(a, task, len(sigmas)),
                    }
                    for n, a in enumerate(truth["annotations"], start=1)
                    if a["image_id"] in evaluated_images and a["category_id"] in categories
                ],
            }
        )
        results = [
            r
            for r in results
            if r["image_id"] in evaluated_images and r["category_id"] in categories
        ]
        found = _load_results(objects, results, task, images, categories)
        evaluated = hotcoco.COCOeval(objects, found, task)
        if max_dets is not None:
            evaluated.params.max_dets = sorted(max_dets)
        if img_ids is not None:
            evaluated.params.img_ids = sorted(images[i] for i in evaluated_images)
        if len(sigmas):
            evaluated.params.kpt_oks_sigmas = list(sigmas)
        evaluated.evaluate()
        evaluated.accumulate()
        with warnings.catch_warnings():
            # It warns about settings other than COCO's, which the caller asked for.
            warnings.filterwarnings("ignore", message="hotcoco")
            with contextlib.redirect_stdout(io.StringIO()):
                evaluated.summarize()
            logger.info("\n".join(evaluated.summary_lines()))
        curves = {key: np.asarray(evaluated.eval[key]) for key in Figures.CURVES}
    return Figures(np.asarray(evaluated.stats), curves)


def _load_results(
    objects: hotcoco.COCO,
    results: List[Dict[str, Any]],
    task: str,
    images: Dict[Any, int],
    categories: Dict[Any, int],
) -> hotcoco.COCO:
    """Hand results to hotcoco without a generic copy, which took a third of an evaluation."""
    if task == "bbox":
        rows = [
            (images[r["image_id"]], *r["bbox"], r["score"], categories[r["category_id"]])
            for r in results
        ]
        return objects.load_res(np.array(rows, dtype=float).reshape(-1, 7))
    key = "segmentation" if task == "segm" else task
    entries = [
        {
            "image_id": images[r["image_id"]],
            "category_id": categories[r["category_id"]],
            "score": r["score"],
            key: r[key],
        }
        for r in results
    ]
    if task == "keypoints":
        for entry, r in zip(entries, results):
            entry["bbox"] = r["bbox"]
    return objects.load_res(entries)  # without a box, the area is the mask's, as in pycocotools


class Figures(NamedTuple):
    """The metrics of an evaluation, under pycocotools' names.

    Args:
        stats (ndarray): COCO's twelve metrics, ten for keypoints, from 0 to 1; -1 without objects.
        eval (dict[str, ndarray]): ``precision`` and ``scores`` by (IoU, recall, class, area,
            limit); ``recall`` by (IoU, class, area, limit).
    """

    stats: np.ndarray
    eval: Dict[str, np.ndarray]

    CURVES = ("precision", "recall", "scores")


def _task_fields(annotation: Dict[str, Any], task: str, num_keypoints: int) -> Dict[str, Any]:
    if task == "segm":
        if not annotation.get("segmentation"):
            raise UserError(
                f"DATASETS.TEST: annotation {annotation['id']} of image {annotation['image_id']} "
                "has no mask; add its 'segmentation', or evaluate boxes only (MODEL.MASK_ON False)"
            )
        return {"segmentation": annotation["segmentation"]}
    if task == "keypoints":
        keypoints = annotation.get("keypoints") or ()
        if len(keypoints) != 3 * num_keypoints:
            # Unlabeled keypoints, as in COCO's files, so that the object is ignored.
            return {"keypoints": [0] * (3 * num_keypoints), "num_keypoints": 0}
        count = annotation.get("num_keypoints")
        if type(count) is not int:
            count = sum(v > 0 for v in keypoints[2::3])
        return {"keypoints": list(keypoints), "num_keypoints": count}
    return {}
