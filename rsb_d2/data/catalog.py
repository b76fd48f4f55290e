"""The data sets that are registered in Detectron2's catalog."""

import difflib
from typing import Any, Callable

from detectron2.data import DatasetCatalog

from ..errors import UserError, first

_NUM_LISTED = 10


def registered(name: str, where: str = "") -> Callable[[], Any]:
    """Return the function that loads a data set, without calling it.

    Args:
        name (str): of the data set.
        where (str): begins the error, as the key that the name comes from.

    Raises:
        UserError: if there is no such data set; it names the likeliest of those that there are.
    """
    if name in DatasetCatalog:
        return DatasetCatalog[name]
    names = DatasetCatalog.list()
    matches = difflib.get_close_matches(str(name), names, n=3)
    raise UserError(
        f"{where and f'{where}: '}no data set is registered as {name!r}; "
        + (
            f"did you mean {first(matches)}? "
            if matches
            # Detectron2's own come first.
            else f"registered are {first(reversed(names), _NUM_LISTED)}. "
        )
        + "A COCO-format one of your own goes into DATASETS.COCO_JSON."
    )
