"""The bad images of a training: logged once, counted, and too many of them an error."""

import logging
from typing import Dict, Iterable, Sequence, Tuple

from ..errors import UserError

logger = logging.getLogger(__name__)


class BadImages:
    """Which image files were skipped, the same in all processes once they were counted.

    Args:
        max_num (int): so many different files may be bad.

    Attributes:
        reasons (dict[str, str]): by path, why each is bad.
        counted_by_loader (bool): whether each batch is counted when it is loaded, in a collective
            of its own; a trainer turns that off, and has them counted along with its losses.
    """

    def __init__(self, max_num: int):
        self._max_num = max_num
        self._uncounted: Dict[str, str] = {}
        self.reasons: Dict[str, str] = {}
        self.counted_by_loader = True

    def add(self, found: Iterable[Tuple[str, str]]) -> None:
        """Note what this process has found: paths and reasons."""
        self._uncounted.update(found)

    def take(self) -> Dict[str, str]:
        """What this process has found since the last time, for :meth:`count`; as a rule nothing."""
        uncounted, self._uncounted = self._uncounted, {}
        return uncounted

    def count(self, found: Sequence[Dict[str, str]]) -> None:
        """Log and count bad images, those of all processes alike.

        Args:
            found (sequence of dict[str, str]): of each process, what it took.

        Raises:
            UserError: if they are too many.
        """
        reasons = {path: reason for of_one in found for path, reason in of_one.items()}
        for path in sorted(reasons.keys() - self.reasons.keys()):
            self.reasons[path] = reasons[path]
            logger.warning(
                f"Skipped a bad image, number {len(self.reasons)} of at most {self._max_num}: "
                f"{path}: {reasons[path]}"
            )
        if len(self.reasons) > self._max_num:
            raise UserError(
                f"more than {self._max_num} images are bad, the last one is "
                f"{list(self.reasons)[-1]}: mend the data, or raise DATALOADER.MAX_BAD_IMAGES"
            )
