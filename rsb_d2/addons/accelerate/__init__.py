from .optimize import optimize_for_inference
from .static import StaticDetector, static_detector

__all__ = ["StaticDetector", "optimize_for_inference", "static_detector"]
