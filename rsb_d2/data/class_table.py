"""One value of each class, laid out for the log."""

import itertools
from typing import Iterable, List

from tabulate import tabulate

from ..errors import printable


def class_table(
    names: Iterable[str],
    values: Iterable[str],
    header: str,
    align: str = "left",
    total: str | None = None,
) -> str:
    """Lay out one value of each class in the form of Detectron2's tables.

    Args:
        names (iterable of str): of the classes; shown as they are, also "1.50" and "True", which
            ``tabulate`` takes for values otherwise.
        values (iterable of str): one of each class.
        header (str): names the values.
        align (str): of the names, ``"left"`` or ``"center"``.
        total (str or None): value of the last row.
    """
    cells: List[str | None] = [x for pair in zip(map(printable, names), values) for x in pair]
    if not cells:
        return ""
    columns = min(6, len(cells))
    if total is not None:
        cells += [None] * (columns - len(cells) % columns) + ["total", total]
    return tabulate(
        list(itertools.zip_longest(*(cells[i::columns] for i in range(columns)))),
        headers=["category", header] * (columns // 2),
        tablefmt="pipe",
        colalign=(align, "left") * (columns // 2),
        disable_numparse=True,
    )
