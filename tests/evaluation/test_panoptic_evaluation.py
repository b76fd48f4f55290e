"""The evaluators of COCO's panoptic segmentation: boxes, masks, stuff and panoptic quality."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic_separated
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from PIL import Image

from tests.helpers.data import layouts
from tests.helpers.data.evaluating import evaluate, jittered


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory):
    root = tmp_path_factory.mktemp("panoptic")
    layouts.make_coco(root, num_images=5)
    register_coco_panoptic_separated(
        "rsb_tiny_pan",
        _get_builtin_metadata("coco_panoptic_separated"),
        f"{root}/coco/val2017",
        f"{root}/coco/panoptic_val2017",
        f"{root}/coco/annotations/panoptic_val2017.json",
        f"{root}/coco/panoptic_stuff_val2017",
        f"{root}/coco/annotations/instances_val2017.json",
    )
    return "rsb_tiny_pan_separated"


def panoptic_output(record, seed=0):
    """Objects and stuff as the truth has them, with noise, in the three forms of PanopticFPN."""
    output = jittered(record, 3, seed)
    truth = np.asarray(Image.open(record["sem_seg_file_name"]))
    rng = np.random.default_rng(seed)
    # Of classes that are there: Detectron2 0.6 counts what is predicted alone, its main does not.
    noise = rng.choice(np.unique(truth), truth.shape)
    labels = np.where(rng.random(truth.shape) < 0.1, noise, truth)
    labels = torch.as_tensor(labels.astype(np.int64))
    ids, segments = torch.zeros(truth.shape, dtype=torch.int32), []
    for stuff in truth[truth > 0].reshape(-1).tolist()[:: truth.size // 4]:
        if stuff not in [s["category_id"] for s in segments]:
            segments.append(dict(id=len(segments) + 1, isthing=False, category_id=stuff))
            ids[labels == stuff] = len(segments)
    for mask, c in zip(output["instances"].pred_masks, output["instances"].pred_classes.tolist()):
        segments.append(dict(id=len(segments) + 1, isthing=True, category_id=c))
        ids[mask] = len(segments)
    present = set(ids.unique().tolist())
    output["sem_seg"] = torch.nn.functional.one_hot(labels, 54).permute(2, 0, 1)
    output["panoptic_seg"] = ids, [s for s in segments if s["id"] in present]
    return output


def test_panoptic(panoptic, tmp_path, caplog):
    records = DatasetCatalog.get(panoptic)
    outputs = {r["file_name"]: panoptic_output(r) for r in records}
    found = evaluate(panoptic, outputs, tmp_path)
    assert {"bbox", "segm", "sem_seg"} <= set(found)
    counts = np.zeros((54, 54), np.int64)
    for r in records:
        truth = np.asarray(Image.open(r["sem_seg_file_name"])).ravel()
        np.add.at(counts, (truth, outputs[r["file_name"]]["sem_seg"].argmax(0).ravel()), 1)
    hits, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    assert found["sem_seg"]["mIoU"] == pytest.approx(
        100 * (hits[union > 0] / union[union > 0]).mean()
    )
    assert found["sem_seg"]["pACC"] == pytest.approx(100 * hits.sum() / counts.sum())
    if not importlib.util.find_spec("panopticapi"):
        assert "pip install git+https://github.com/cocodataset/panopticapi.git" in caplog.text
        return
    metadata = MetadataCatalog.get(panoptic)
    expected = panoptic_quality(json.load(open(metadata.panoptic_json)), metadata, records, outputs)
    assert 0.05 < expected < 0.95
    assert found["panoptic_seg"]["PQ"] == pytest.approx(100 * expected)


def panoptic_quality(content, metadata, records, outputs):
    """PQ, written anew from its paper's definition; the truth has no crowds and no void."""
    of_class = {}
    to_id = {False: metadata.stuff_dataset_id_to_contiguous_id}
    to_id[True] = metadata.thing_dataset_id_to_contiguous_id
    to_id = {k: {index: i for i, index in v.items()} for k, v in to_id.items()}
    stems = {r["file_name"].rpartition("/")[2][:-4]: r["file_name"] for r in records}
    for annotation in content["annotations"]:
        path = f"{metadata.panoptic_root}/{annotation['file_name']}"
        truth = np.asarray(Image.open(path)).astype(int) @ [1, 256, 256**2]
        ids, segments = outputs[stems[annotation["file_name"][:-4]]]["panoptic_seg"]
        missed = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
        for s in segments:
            c, mask = to_id[s["isthing"]][s["category_id"]], ids.numpy() == s["id"]
            counts = of_class.setdefault(c, [0.0, 0, 0, 0])
            for other in [i for i, category in missed.items() if category == c]:
                iou = (mask & (truth == other)).sum() / (mask | (truth == other)).sum()
                if iou > 0.5:
                    counts[0] += iou
                    counts[1] += 1
                    missed.pop(other)
                    break
            else:
                counts[2] += 1
        for c in missed.values():
            of_class.setdefault(c, [0.0, 0, 0, 0])[3] += 1
    return np.mean([iou / (tp + fp / 2 + fn / 2) for iou, tp, fp, fn in of_class.values()])
