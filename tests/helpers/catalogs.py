"""Detectron2's global catalogs, left as they were: tests register other data under one name."""

from contextlib import contextmanager

from detectron2.data import DatasetCatalog, MetadataCatalog


@contextmanager
def catalogs_kept(*without):
    """Forget what is registered meanwhile; the data sets of the given names are not there."""
    before = [dict(DatasetCatalog.data), dict(MetadataCatalog.data)]
    for name in without:
        DatasetCatalog.data.pop(name, None)
        MetadataCatalog.data.pop(name, None)
    try:
        yield
    finally:
        DatasetCatalog.data, MetadataCatalog.data = before
