"""TIDE's errors and what they cost, on cases made by hand."""

import numpy as np
import pytest

from rsb_d2.addons.workbench.report.results.matching import KINDS, match, match_image
from rsb_d2.addons.workbench.report.results.results_file import Results
from rsb_d2.addons.workbench.report.results.tide import ap_by_class, break_down
from rsb_d2.addons.workbench.report.source import Source

CAT, DOG = 0, 1
BOX = [10, 10, 40, 40]
SHIFTED = {  # by how much to the right, for an IoU with BOX of ...
    0.9: 40 * (1 - 0.9) / (1 + 0.9),
    0.6: 40 * (1 - 0.6) / (1 + 0.6),
    0.3: 40 * (1 - 0.3) / (1 + 0.3),
    0.05: 40 * (1 - 0.05) / (1 + 0.05),
}


def shifted(iou):
    return [BOX[0] + SHIFTED[iou], *BOX[1:]]


def make(truth, found, num_images=1):
    """truth: [(label, box)] or [(label, box, image)], crowds as (label, box, image, True);
    found: [(label, score, box)], all in image 0."""
    images = [
        dict(id=i + 1, file_name=f"{i}.jpg", width=300, height=200) for i in range(num_images)
    ]
    annotations = [
        dict(
            id=i + 1,
            image_id=(t[2] if len(t) > 2 else 0) + 1,
            category_id=t[0] + 1,
            bbox=t[1],
            area=t[1][2] * t[1][3],
            iscrowd=int(len(t) > 3),
        )
        for i, t in enumerate(truth)
    ]
    source = Source("hand-made", "", "", images, annotations, [1, 2], ["cat", "dog"], [])
    results = Results(
        image=np.zeros(len(found), dtype=np.int64),
        label=np.array([f[0] for f in found], dtype=np.int64),
        score=np.array([f[1] for f in found], dtype=float),
        boxes=np.array([f[2] for f in found], dtype=float).reshape(-1, 4),
        masks=None,
        warnings=[],
    )
    matching = match(source, results, "bbox")
    return matching, break_down(results, matching, 2)


def kinds(matching):
    return [KINDS[k] if k < len(KINDS) else "ignored" for k in matching.kind]


@pytest.mark.parametrize(
    "truth, found, expected, missed",
    [
        ([(CAT, BOX)], [(CAT, 0.9, shifted(0.9))], ["correct"], 0),
        ([(DOG, BOX)], [(CAT, 0.9, shifted(0.6))], ["Cls"], 0),
        ([(CAT, BOX)], [(CAT, 0.9, shifted(0.3))], ["Loc"], 0),
        ([(DOG, BOX)], [(CAT, 0.9, shifted(0.3))], ["Both"], 1),
        ([(CAT, BOX)], [(CAT, 0.9, shifted(0.05))], ["Bkg"], 1),
        ([(CAT, BOX)], [(CAT, 0.9, [200, 100, 20, 20])], ["Bkg"], 1),
        ([(CAT, BOX)], [], [], 1),
        ([], [(CAT, 0.9, BOX)], ["Bkg"], 0),
        # The better scored one has the object, whatever their order in the file.
        ([(CAT, BOX)], [(CAT, 0.5, BOX), (CAT, 0.9, shifted(0.6))], ["Dupe", "correct"], 0),
        # Beside a detection that has the object, a poorly placed one is Loc still.
        ([(CAT, BOX)], [(CAT, 0.9, BOX), (CAT, 0.5, shifted(0.3))], ["correct", "Loc"], 0),
        # Poorly placed for its own class goes before well placed for another.
        ([(CAT, BOX), (DOG, shifted(0.3))], [(CAT, 0.9, shifted(0.3))], ["Loc"], 1),
        # Another class at IoU 0.5 goes before a duplicate.
        (
            [(CAT, BOX), (DOG, shifted(0.9))],
            [(CAT, 0.9, BOX), (CAT, 0.5, shifted(0.9))],
            ["correct", "Cls"],
            0,
        ),
        # A crowd excuses all detections of its class in it, and is never missed.
        (
            [(CAT, [0, 0, 200, 150], 0, True)],
            [(CAT, 0.9, BOX), (CAT, 0.8, BOX), (DOG, 0.7, BOX)],
            ["ignored", "ignored", "Bkg"],
            0,
        ),
    ],
)
def test_kinds(truth, found, expected, missed):
    matching, errors = make(truth, found)
    assert kinds(matching) == expected
    assert matching.missed.sum() == missed == errors.class_count["Miss"].sum()


def test_of_two_free_objects_a_detection_takes_the_closer_one():
    ious = np.array([[0.6, 0.8], [0.7, 0.9]])
    kind, object_ = match_image(ious, np.zeros(2), np.zeros(2), np.zeros(2, bool))
    assert kind.tolist() == [0, 0] and object_.tolist() == [1, 0]


def test_more_than_a_hundred_detections_of_a_class_do_not_count():
    found = [(CAT, 0.9 - 0.001 * i, [200, 100, 20, 20]) for i in range(120)]
    matching, errors = make([(CAT, BOX)], found)
    assert kinds(matching) == ["Bkg"] * 100 + ["ignored"] * 20
    assert errors.class_count["Bkg"].tolist() == [100, 0]


def gains(errors):
    return {name: round(gain, 4) for name, gain in errors.delta_ap.items() if gain}


def test_cost_of_a_wrong_class():
    # A cat found, a dog taken for a cat: AP is 1 for cats (the error comes later), 0 for dogs.
    truth = [(CAT, BOX), (DOG, [100, 10, 40, 40])]
    _, errors = make(truth, [(CAT, 0.9, BOX), (CAT, 0.5, [100, 10, 40, 40])])
    assert errors.ap50 == pytest.approx(0.5)
    assert gains(errors) == {"Cls": 0.5}
    assert errors.class_delta_ap["Cls"].tolist() == pytest.approx([0, 1])
    assert errors.class_count["Cls"].tolist() == [1, 0]


def test_cost_of_a_poor_place():
    _, errors = make([(CAT, BOX)], [(CAT, 0.9, shifted(0.3))])
    assert errors.ap50 == 0 and gains(errors) == {"Loc": 1.0}


def test_only_the_best_scored_error_of_an_object_is_corrected():
    # Either corrected alone finds the cat; the dog error has the higher score, so the poorly
    # placed one is taken out instead when it is corrected.
    _, errors = make([(CAT, BOX)], [(DOG, 0.9, BOX), (CAT, 0.5, shifted(0.3))])
    assert gains(errors) == {"Cls": 1.0}
    _, errors = make([(CAT, BOX)], [(DOG, 0.4, BOX), (CAT, 0.5, shifted(0.3))])
    assert gains(errors) == {"Loc": 1.0}


@pytest.mark.parametrize(
    "error, before, correct",
    [
        ("Dupe", shifted(0.9), BOX),
        ("Bkg", [200, 100, 20, 20], None),
    ],
)
def test_cost_of_what_is_taken_out(error, before, correct):
    # Two cats; a false detection scored between the two true ones: precision 1, then 2 / 3.
    second = [100, 10, 40, 40]
    found = [(CAT, 0.9, correct or BOX), (CAT, 0.8, before), (CAT, 0.7, second)]
    _, errors = make([(CAT, BOX), (CAT, second)], found)
    assert errors.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert gains(errors) == {error: round(1 - errors.ap50, 4)}


def test_cost_of_missed_objects_of_a_class_and_of_all():
    # One of two cats is found: recall ends at 0.5, which is 51 of the 101 points.
    _, errors = make([(CAT, BOX), (CAT, [100, 10, 40, 40])], [(CAT, 0.9, BOX)])
    assert errors.ap50 == pytest.approx(51 / 101)
    assert gains(errors) == {"Miss": round(50 / 101, 4)}
    _, errors = make([(CAT, BOX), (DOG, BOX, 1)], [], num_images=2)
    assert errors.ap50 == 0 and gains(errors) == {"Miss": 1.0}


def test_a_class_without_objects_is_not_in_the_mean():
    _, errors = make([(CAT, BOX)], [(CAT, 0.9, BOX), (DOG, 0.8, [200, 100, 20, 20])])
    assert errors.ap50 == pytest.approx(1) and not any(gains(errors).values())
    assert errors.class_count["Bkg"].tolist() == [0, 1]


def test_average_precision_of_a_class_without_objects():
    aps = ap_by_class(np.array([1]), np.array([0.5]), np.array([False]), np.array([0, 0, 2]))
    assert np.isnan(aps[0]) and aps[1:].tolist() == [0, 0]


def test_confusion():
    truth = [(CAT, BOX), (DOG, [100, 10, 40, 40]), (DOG, [200, 100, 40, 40])]
    found = [
        (DOG, 0.9, BOX),  # a cat taken for a dog
        (DOG, 0.8, [100, 10, 40, 40]),  # a dog
        (CAT, 0.7, [10, 120, 40, 40]),  # nothing there
        (DOG, 0.4, [200, 100, 40, 40]),  # below the threshold, so this dog is missed
    ]
    matching, _ = make(truth, found)
    assert matching.confusion.tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_confusion_pairs_by_overlap_and_leaves_out_crowds():
    truth = [(CAT, BOX), (DOG, [100, 0, 150, 150], 0, True)]
    found = [(DOG, 0.9, shifted(0.6)), (CAT, 0.6, BOX), (DOG, 0.9, [120, 20, 30, 30])]
    matching, _ = make(truth, found)
    assert matching.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
