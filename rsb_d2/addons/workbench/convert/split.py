"""Images parted into two, so that each class is in both in the same shares."""

import random
from collections import Counter
from typing import Dict, List, Sequence, Set, Tuple

from ....errors import UserError

_BACKGROUND = object()


def split_by_class(
    labels: Sequence[Set[str]], share: float, seed: int
) -> Tuple[List[int], List[int]]:
    """Part images in two, stratified by class.

    Args:
        labels (sequence of set[str]): the classes in each image; none in one of background, which
            counts as a class of its own.
        share (float): of the images in the first part, between 0 and 1.
        seed (int): the same images and seed give the same parts.

    Returns:
        list[int], list[int]: indices of the images of the two parts, ascending. The first has
        ``share`` of them, rounded, and neither is empty. A class that is in two images or more is
        in both parts, as far as their sizes allow.

    Raises:
        UserError: if ``share`` is not between 0 and 1, or there are less than two images.

    Source: Sechidis, Tsoumakas and Vlahavas, On the stratification of multi-label data, ECML PKDD
    2011, algorithm 1: the rarest class first, each image to the part that lacks it most.
    """
    if not 0 < share < 1:
        raise UserError(f"--split is {share:g}; it is the share of the train split, as 0.8")
    if len(labels) < 2:
        raise UserError(f"--split: there are {len(labels)} images; two are needed to part them")
    kinds = [set(names) or {_BACKGROUND} for names in labels]
    rng = random.Random(seed)
    order = list(range(len(kinds)))
    rng.shuffle(order)
    first = min(max(round(len(kinds) * share), 1), len(kinds) - 1)
    room = [first, len(kinds) - first]
    counts = Counter(kind for names in kinds for kind in names)
    wanted = [_wanted(counts, share), _wanted(counts, 1 - share)]
    members: Dict[object, List[int]] = {kind: [] for kind in counts}
    for index in order:
        for kind in kinds[index]:
            members[kind].append(index)

    parts: Tuple[List[int], List[int]] = ([], [])
    done: Set[int] = set()
    rank = {kind: i for i, kind in enumerate(sorted(counts, key=str))}
    while counts:
        rarest = min(counts, key=lambda kind: (counts[kind], rank[kind]))
        for index in members[rarest]:
            if index in done:
                continue
            part = max((0, 1), key=lambda p: (room[p] > 0, wanted[p][rarest], room[p]))
            parts[part].append(index)
            done.add(index)
            room[part] -= 1
            for kind in kinds[index]:
                wanted[part][kind] -= 1
                counts[kind] -= 1
        counts = Counter({kind: count for kind, count in counts.items() if count > 0})
    return sorted(parts[0]), sorted(parts[1])


def _wanted(counts: Counter, share: float) -> Dict[object, float]:
    """The images of each class that a part should get: of two or more, at least one."""
    return {
        kind: min(max(count * share, 1), count - 1) if count > 1 else share
        for kind, count in counts.items()
    }
