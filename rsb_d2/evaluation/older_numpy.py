"""Detectron2's evaluators whose packages ask NumPy for names that it no longer has.

lvis 0.5.3 needs ``np.float``, gone since 1.24, cityscapesscripts 2.3.0 ``np.in1d``, gone since 2.4.
Both are the newest there are.
"""

import copy
import glob
import importlib
import os
from contextlib import contextmanager
from typing import Any, Iterator

import numpy as np
from detectron2 import evaluation
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..data.stock.packages import cityscapes_modules
from .predictions import write_dataset_name


class _OlderNumPy:
    """NumPy with the names that those packages need."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def in1d(self, values: Any, among: Any, invert: bool = False) -> np.ndarray:
        return np.isin(values, among, invert=invert).ravel()


@contextmanager
def older_numpy(*modules: str) -> Iterator[None]:
    """Give modules of those packages an older NumPy as ``np`` for the block; NumPy stays as it is.

    Args:
        modules (str): their names.
    """
    loaded = [importlib.import_module(name) for name in modules]
    for module in loaded:
        module.np = _OlderNumPy()
    try:
        yield
    finally:
        for module in loaded:
            module.np = np


class LVISEvaluator(evaluation.LVISEvaluator):
    """Detectron2's, on today's NumPy."""

    def _eval_predictions(self, predictions):
        if self._output_dir:
            write_dataset_name(self._output_dir, self._metadata.name)
        super()._eval_predictions(predictions)

    def evaluate(self):
        with older_numpy("lvis.eval"):
            return super().evaluate()


class CityscapesInstanceEvaluator(evaluation.CityscapesInstanceEvaluator):
    """Detectron2's, on today's NumPy, without a file ``matches.json`` in the working directory.

    The package writes it in the middle of its evaluation, and cannot write today's numbers.
    """

    def evaluate(self):
        comm.synchronize()
        if comm.get_rank() > 0:
            return None
        import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as package

        args = copy.copy(package.args)
        args.predictionPath = os.path.abspath(self._temp_dir)
        args.predictionWalk, args.colorized = None, False
        args.gtInstancesFile = os.path.join(self._temp_dir, "gtInstances.json")
        folder = PathManager.get_local_path(self._metadata.gt_dir)
        truth = glob.glob(os.path.join(folder, "*", "*_gtFine_instanceIds.png"))
        predictions = [package.getPrediction(path, args) for path in truth]
        with older_numpy(package.__name__):
            # The steps of its evaluateImgLists.
            package.setInstanceLabels(args)
            instances = package.getGtInstances(truth, args)
            matches = package.matchGtWithPreds(predictions, truth, instances, args)
            figures = package.computeAverages(package.evaluateMatches(matches, args), args)
        package.printResults(figures, args)
        self._working_dir.cleanup()
        return {"segm": {"AP": 100 * figures["allAp"], "AP50": 100 * figures["allAp50%"]}}


class CityscapesSemSegEvaluator(evaluation.CityscapesSemSegEvaluator):
    """Detectron2's, on today's NumPy."""

    def evaluate(self):
        with older_numpy(*cityscapes_modules("evaluation.evalPixelLevelSemanticLabeling")):
            return super().evaluate()
