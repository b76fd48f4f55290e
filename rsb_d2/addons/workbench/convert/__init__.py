from .convert import FORMATS, Conversion, convert

__all__ = ["FORMATS", "Conversion", "convert"]
