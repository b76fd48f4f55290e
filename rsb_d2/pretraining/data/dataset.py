"""What data sets of images with one label each have in common, and their registration."""

from typing import Any, Dict, List

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import UserError, printable

# The type of evaluator of every data set whose images have one label each.
EVALUATOR_TYPE = "image_classification"


class ClassificationDataset:
    """A data set of images with one label each: the function that Detectron2's catalog calls.

    Its records are ``{"file_name", "image_id", "label"}``.

    Args:
        name (str): the name it is registered under.
        source (str): what messages call the place of the data.

    Attributes:
        class_names (list[str] or None): in the order of the labels, once it is checked.
    """

    def __init__(self, name: str, source: str):
        self.name = name
        self.source = source
        self.class_names: List[str] | None = None

    def __call__(self) -> List[Dict[str, Any]]:
        """Return the records; not kept here, as the loader keeps its own packed copy."""
        self.check()
        return self._records()

    def check(self) -> None:
        """Look at the data, unless it was looked at before; set the metadata.

        Raises:
            UserError: if it cannot be used.
        """
        if self.class_names is not None:
            return
        try:
            self.class_names = self._check()
        except UserError as e:
            raise UserError(f"data set {self.name}: {printable(self.source)}: {e}") from None
        self.set_metadata()

    def set_metadata(self) -> None:
        if MetadataCatalog.get(self.name).get("thing_classes") not in (None, self.class_names):
            MetadataCatalog.remove(self.name)  # metadata cannot be set twice
        metadata = MetadataCatalog.get(self.name)
        metadata.evaluator_type = EVALUATOR_TYPE
        if self.class_names is not None:
            metadata.thing_classes = self.class_names

    def is_same(self, other: Any) -> bool:
        """Whether another object stands for the same data."""
        return type(self) is type(other) and self.source == other.source

    def _check(self) -> List[str]:
        raise NotImplementedError

    def _records(self) -> List[Dict[str, Any]]:
        raise NotImplementedError


def register(dataset: ClassificationDataset, key: str) -> None:
    """Register a data set, or do nothing where its equal is registered.

    Args:
        dataset (ClassificationDataset): with a name.
        key (str): of the config that it is from.

    Raises:
        UserError: if the name is that of something else.
    """
    name = dataset.name
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, dataset)
        dataset.set_metadata()
        return
    registered = DatasetCatalog[name]
    if not isinstance(registered, ClassificationDataset):
        raise UserError(f"{key}: {name} is the name of another data set; choose another one")
    if not dataset.is_same(registered):
        raise UserError(
            f"{key}: {name} is registered already, with {printable(registered.source)}; choose "
            f"another name for {printable(dataset.source)}"
        )
    registered.class_names = None  # the folder may have changed


def used(names: List[str]) -> List[ClassificationDataset]:
    """Those of some names that stand for images with one label each."""
    found = [DatasetCatalog[name] for name in names if name in DatasetCatalog]
    return [dataset for dataset in found if isinstance(dataset, ClassificationDataset)]
