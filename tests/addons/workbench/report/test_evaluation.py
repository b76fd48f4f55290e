"""TIDE's errors and their costs, on hand-made cases."""

import hotcoco
import pytest

from rsb_d2.addons.workbench.report.evaluation import KINDS, evaluate
from rsb_d2.addons.workbench.report.results import Results
from rsb_d2.addons.workbench.report.source import Source

CAT, DOG = 1, 2
BOX = [10, 10, 40, 40]


def shifted(iou):
    """BOX, moved to the right until it overlaps with BOX by this IoU."""
    return [BOX[0] + 40 * (1 - iou) / (1 + iou), *BOX[1:]]


FAR, SECOND = [200, 100, 20, 20], [100, 10, 40, 40]


def make_source(truth, num_images=1):
    """truth: [(category, box)] or [(category, box, image)], crowds as (category, box, image, 1)."""
    annotations = [
        dict(
            id=i,
            image_id=(t[2] if len(t) > 2 else 0) + 1,
            category_id=t[0],
            bbox=t[1],
            area=t[1][2] * t[1][3],
            iscrowd=int(len(t) > 3),
        )
        for i, t in enumerate(truth, start=1)
    ]
    images = [dict(id=i + 1, file_name="", width=300, height=200) for i in range(num_images)]
    categories = [dict(id=CAT, name="cat"), dict(id=DOG, name="dog")]
    content = dict(images=images, annotations=annotations, categories=categories)
    return Source("hand-made", hotcoco.COCO(content))


def run(truth, found, num_images=1):
    """found: [(category, score, box)], all in image 0."""
    source = make_source(truth, num_images)
    records = [dict(image_id=1, category_id=c, score=s, bbox=b) for c, s, b in found]
    return evaluate(source, Results(records, source), "bbox", 0.5)


def kinds(evaluation):
    return [(*KINDS, "ignored")[kind] for kind in evaluation.kind]


@pytest.mark.parametrize(
    "truth, found, expected, missed",
    [
        ([(CAT, BOX)], [(CAT, 0.9, shifted(0.9))], ["correct"], 0),
        ([(DOG, BOX)], [(CAT, 0.9, shifted(0.6))], ["Cls"], 0),
        ([(CAT, BOX)], [(CAT, 0.9, shifted(0.3))], ["Loc"], 0),
        ([(DOG, BOX)], [(CAT, 0.9, shifted(0.3))], ["Both"], 1),
        ([(CAT, BOX)], [(CAT, 0.9, shifted(0.05))], ["Bkg"], 1),
        ([(CAT, BOX)], [(CAT, 0.9, FAR)], ["Bkg"], 1),
        ([(CAT, BOX)], [], [], 1),
        # The detection with the better score has the object, regardless of the order in the file.
        ([(CAT, BOX)], [(CAT, 0.5, BOX), (CAT, 0.9, shifted(0.6))], ["Dupe", "correct"], 0),
        # Loc, even if another detection has the object.
        ([(CAT, BOX)], [(CAT, 0.9, BOX), (CAT, 0.5, shifted(0.3))], ["correct", "Loc"], 0),
        # Poorly placed for its own class comes before well placed for another.
        ([(CAT, BOX), (DOG, shifted(0.3))], [(CAT, 0.9, shifted(0.3))], ["Loc"], 1),
        # Another class comes before a duplicate.
        (
            [(CAT, BOX), (DOG, shifted(0.9))],
            [(CAT, 0.9, BOX), (CAT, 0.5, shifted(0.9))],
            ["correct", "Cls"],
            0,
        ),
        # Detections of its class in a crowd are ignored, and a crowd is never missed.
        (
            [(CAT, [0, 0, 200, 150], 0, 1), (DOG, FAR, 0)],
            [(CAT, 0.9, BOX), (CAT, 0.8, BOX), (DOG, 0.7, BOX)],
            ["ignored", "ignored", "Bkg"],
            1,
        ),
    ],
)
def test_kinds(truth, found, expected, missed):
    evaluation = run(truth, found)
    assert kinds(evaluation) == expected
    assert evaluation.error_counts["Miss"] == missed


def test_confusion():
    truth = [(CAT, BOX), (DOG, SECOND), (DOG, FAR), (DOG, [0, 100, 150, 100], 0, 1)]
    found = [
        (DOG, 0.9, BOX),  # a cat taken for a dog
        (DOG, 0.8, SECOND),
        (CAT, 0.7, [260, 20, 30, 30]),  # background
        (DOG, 0.4, FAR),  # below the minimum score, so this dog is missed
        (DOG, 0.9, [20, 120, 30, 30]),  # in the crowd
    ]
    assert run(truth, found).confusion.tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]
