"""The keypoints of categories in COCO's format, as Detectron2's metadata describes them."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Dict, List, NamedTuple, Tuple

from ..errors import UserError, first
from ..visualization import class_colors

# Words of a name that say on which side a keypoint is.
_SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}
_OPPOSITE = {"left": "right", "right": "left"}


class KeypointNames(NamedTuple):
    """The keypoints that all objects of a data set share.

    Args:
        names (list[str]): in the order of the annotations.
        skeleton (list[list[int]]): pairs of indices, to be connected in pictures.
    """

    names: List[str]
    skeleton: List[List[int]]


def common_keypoints(categories: Sequence[Dict[str, Any]]) -> KeypointNames:
    """Return the keypoints that the categories of an annotation file have in common.

    A category may have none: its objects only have boxes. Lists that differ, or have a name twice,
    are an error.
    """
    named = [c for c in categories if c.get("keypoints")]
    if not named:
        raise UserError(
            "no category names its keypoints, so there are none to learn; add 'keypoints': "
            '["left_eye", "right_eye", ...] to the category, or write MODEL.KEYPOINT_ON False'
        )
    for category in named:
        names = category["keypoints"]
        is_list = isinstance(names, list) and all(isinstance(n, str) and n for n in names)
        if not is_list or len(set(names)) < len(names):
            raise UserError(
                f"the 'keypoints' of category {category['name']!r} are not a list of different "
                "names"
            )
        if names != named[0]["keypoints"]:
            raise UserError(
                f"the categories {named[0]['name']!r} and {category['name']!r} have different "
                "keypoints, but a model has one list of them for all classes; give both the same "
                "list, and 0, 0, 0 for each that an object does not have"
            )
    names = named[0]["keypoints"]
    skeletons = (c["skeleton"] for c in named if isinstance(c.get("skeleton"), list))
    pairs = [pair for skeleton in skeletons for pair in skeleton if _is_pair(pair, len(names))]
    return KeypointNames(names, [[a - 1, b - 1] for a, b in dict.fromkeys(map(tuple, pairs))])


def _is_pair(pair: Any, num_keypoints: int) -> bool:
    is_pair = isinstance(pair, list) and len(pair) == 2
    return is_pair and all(type(i) is int and 1 <= i <= num_keypoints for i in pair)


def connection_rules(keypoints: KeypointNames) -> List[Tuple[str, str, Tuple[int, int, int]]]:
    """Return the pairs that Detectron2's ``Visualizer`` connects: two names and a color."""
    names, skeleton = keypoints
    colors = class_colors(len(skeleton))
    return [(names[a], names[b], color) for (a, b), color in zip(skeleton, colors)]


def flip_pairs(names: Sequence[str]) -> List[Tuple[str, str]]:
    """Return the keypoints that are swapped when an image is flipped horizontally, by their names.

    Two names are a pair, the left one first, if they differ only in ``left`` and ``right``, or
    ``l`` and ``r``, in any place and case. Words end at a character that is not a letter, and
    before a capital one: ``left_eye``, ``eye-l``, ``Left Eye``, ``earL`` and ``L1``.
    """
    by_key = _by_key(names)
    pairs = []
    for (words, sides), name in by_key.items():
        other = by_key.get((words, tuple(map(_OPPOSITE.get, sides))))
        if sides and sides[0] == "left" and other is not None:
            pairs.append((name, other))
    return pairs


def unpaired_names(names: Sequence[str], pairs: Sequence[Sequence[str]]) -> List[str]:
    """The names with ``left`` or ``right`` in them that are in no pair."""
    paired = {name for pair in pairs for name in pair}
    sided = [n for n in names if re.search("left|right", n, re.IGNORECASE)]
    return [name for name in sided if name not in paired]


def _by_key(names: Sequence[str]) -> Dict[Tuple, str]:
    """Return the names by their words without sides, and their sides, where these are unique."""
    keys = [_key(name) for name in names]
    counts = Counter(keys)
    return {key: name for key, name in zip(keys, names) if counts[key] == 1}


def _key(name: str) -> Tuple[Tuple[str, ...], Tuple[str, ...]]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower()
    # Also as a part of a word: "lefteye".
    spaced = re.sub("left|right", r" \g<0> ", spaced)
    words = re.findall(r"[^\W\d_]+|\d+", spaced)
    sides = tuple(_SIDES[word] for word in words if word in _SIDES)
    return tuple("*" if word in _SIDES else word for word in words), sides


def check_flip_pairs(pairs: Any, names: Sequence[str]) -> None:
    """Check ``DATASETS.KEYPOINT_FLIP_PAIRS`` against the names of the keypoints."""
    key = "DATASETS.KEYPOINT_FLIP_PAIRS"
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{key} is {pairs!r}; write [[left name, right name], ...]")
    given = [name for pair in pairs for name in pair]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UserError(
            f"{key} names {first(unknown)}, but the keypoints are {first(names, len(names))}"
        )
    if len(set(given)) < len(given):
        twice = [name for name, count in Counter(given).items() if count > 1]
        raise UserError(f"{key} names {first(twice)} more than once")
