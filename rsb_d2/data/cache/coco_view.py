"""The images and annotations of packed records in COCO's own format, for pages about the data."""

from collections.abc import Sequence
from typing import Any, Dict, Iterator, List

import numpy as np

from .records import PackedRecords


class CocoImages(Sequence):
    """``images`` of an annotation file, sorted by id; each is made when it is asked for.

    Args:
        records (PackedRecords): of all images of the file.
    """

    def __init__(self, records: PackedRecords):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name, image_id, height, width, *_ = self._records.stored(range(len(self))[index])
        return {"id": image_id, "file_name": name, "height": height, "width": width}


class CocoAnnotations(Sequence):
    """``annotations`` of an annotation file, image by image; each is made when it is asked for.

    Args:
        records (PackedRecords): of all images of the file.
        category_ids (list[int]): in the order of the classes.
    """

    def __init__(self, records: PackedRecords, category_ids: List[int]):
        self._records = records
        self._category_ids = category_ids
        self._first = records.first_annotations()

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        image = int(np.searchsorted(self._first, index, side="right")) - 1
        return self.of_image(image)[index - int(self._first[image])]

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        for image in range(len(self._records)):
            yield from self.of_image(image)

    def of_image(self, image: int) -> List[Dict[str, Any]]:
        """The annotations of the image at a place of :class:`CocoImages`."""
        _, image_id, _, _, ids, areas, objects = self._records.stored(image)
        for id_, area, found in zip(ids, areas, objects):
            found.update(id=id_, image_id=image_id, area=area)
            found["category_id"] = self._category_ids[found["category_id"]]
            if found.get("keypoints"):  # back to the index of a pixel
                found["keypoints"] = [
                    value if i % 3 == 2 else value - 0.5
                    for i, value in enumerate(found["keypoints"])
                ]
        return objects
