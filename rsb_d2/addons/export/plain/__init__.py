"""A detector as a folder that Detectron2 runs without this project."""

from .package import Package, check_folder, export_package

__all__ = ["Package", "check_folder", "export_package"]
