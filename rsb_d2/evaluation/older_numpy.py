"""Detectron2's evaluators whose packages ask NumPy for names that it no longer has.

lvis 0.5.3 needs ``np.float``, gone since 1.24, cityscapesscripts 2.3.0 ``np.in1d``, gone since 2.4.
Both are the newest there are.
"""

import glob
import os
from contextlib import contextmanager
from typing import Any, Iterator

import numpy as np
from detectron2 import evaluation
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .predictions import write_dataset_name


def _in1d(values: Any, among: Any, invert: bool = False) -> np.ndarray:
    return np.isin(values, among, invert=invert).ravel()


_NAMES = {"float": float, "in1d": _in1d}


@contextmanager
def older_numpy() -> Iterator[None]:
    """Give NumPy the names that those packages need, where it lacks them, for the block alone."""
    missing = [name for name in _NAMES if name not in vars(np)]
    for name in missing:
        setattr(np, name, _NAMES[name])
    try:
        yield
    finally:
        for name in missing:
            delattr(np, name)


class LVISEvaluator(evaluation.LVISEvaluator):
    """Detectron2's, on today's NumPy."""

    def _eval_predictions(self, predictions):
        if self._output_dir:
            write_dataset_name(self._output_dir, self._metadata.name)
        super()._eval_predictions(predictions)

    def evaluate(self):
        with older_numpy():
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

        args = package.args
        args.predictionPath = os.path.abspath(self._temp_dir)
        args.predictionWalk, args.colorized = None, False
        args.gtInstancesFile = os.path.join(self._temp_dir, "gtInstances.json")
        folder = PathManager.get_local_path(self._metadata.gt_dir)
        truth = glob.glob(os.path.join(folder, "*", "*_gtFine_instanceIds.png"))
        predictions = [package.getPrediction(path, args) for path in truth]
        with older_numpy():
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
        with older_numpy():
            return super().evaluate()
