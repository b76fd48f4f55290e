"""The folder of a run's output, of which nothing half-written is ever left in its place."""

import dataclasses
import json
import os
import shutil
import sys
from typing import Any, Dict

from ....data.class_names import ClassNames
from ....errors import UserError, printable
from ....files import move_aside, whole_file
from .journal import Lines
from .settings import check_settings
from .summary import write_results


class RunFolder:
    """The output of a run: ``run.json`` says of which settings, and of a finished one how it ended.

    Args:
        folder (str): of all output.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.pictures = os.path.join(folder, "pictures")
        self.results_file = os.path.join(folder, "results.json")
        self.images_file = os.path.join(folder, "images.json")
        self.progress = os.path.join(folder, "progress")
        self._state_file = os.path.join(folder, "run.json")

    def begin(
        self, settings: Dict[str, Any], num_images: int, *, resume: bool, pictures: bool
    ) -> bytes | Dict[str, Any]:
        """Make the folder, and look for what is done.

        Args:
            settings (dict): of this run.
            num_images (int): of all processes.
            resume (bool): whether to go on with the run that is there.
            pictures (bool): whether some are written.

        Returns:
            bytes or dict: a byte for each image, 1 where it is done; or, if all of the run is,
            its summary.

        Raises:
            UserError: if the folder cannot be written to, or the run in it has other settings.
        """
        _make_folder(self.folder)
        state = self._state() if resume else None
        if state is None:
            self._begin_anew(settings)
        if pictures:
            _make_folder(self.pictures)
        if state is None:
            return bytes(num_images)
        check_settings(state["settings"], settings, self.folder)
        if state["summary"] and os.path.isfile(self.results_file):
            print(f"the run in {self.folder} is finished", file=sys.stderr)
            return state["summary"]
        _make_folder(self.progress)
        lines = Lines(self.progress, num_images)
        done = lines.done()
        lines.close()
        for path, reason in lines.skipped:
            print(f"skipped {printable(path)}: {reason}", file=sys.stderr)
        print(f"{sum(done)} of {num_images} images are done", file=sys.stderr)
        return done

    def _state(self) -> Dict[str, Any] | None:
        try:
            with open(self._state_file) as f:
                state = json.load(f)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            raise UserError(
                f"--resume: cannot read {self._state_file} ({e}); leave --resume out to begin anew"
            ) from None
        if not isinstance(state, dict) or not {"settings", "summary"} <= state.keys():
            raise UserError(
                f"--resume: {self._state_file} is of another program; name another folder with "
                "--output"
            )
        return state

    def _begin_anew(self, settings: Dict[str, Any]) -> None:
        self._set_aside_others(settings)
        if os.path.isdir(self.progress):
            print(
                f"the unfinished run in {self.folder} is begun anew; --resume would go on with it",
                file=sys.stderr,
            )
            shutil.rmtree(self.progress, ignore_errors=True)
        self._write_state(settings, None)
        _make_folder(self.progress)

    def _set_aside_others(self, settings: Dict[str, Any]) -> None:
        """Move the output of a run of other images, weights or settings."""
        try:
            state = self._state()
        except UserError:
            state = None
        if state is None or state["settings"] == settings:
            return
        paths = (
            *(self.pictures, self.results_file, self.images_file, self.progress, self._state_file),
        )
        there = [os.path.basename(path) for path in paths if os.path.lexists(path)]
        moved = move_aside(self.folder, there)
        print(f"the output of another run in {self.folder} is now in {moved}", file=sys.stderr)

    def _write_state(self, settings: Dict[str, Any], summary: Dict[str, Any] | None) -> None:
        with whole_file(self._state_file) as f:
            f.write(json.dumps({"settings": settings, "summary": summary}, indent=1).encode())

    def finish(
        self, settings: Dict[str, Any], num_images: int, classes: ClassNames
    ) -> Dict[str, Any]:
        """Make the results of the lines of all processes.

        Returns:
            dict: the summary.

        Raises:
            UserError: if they cannot be written.
        """
        lines = Lines(self.progress, num_images)
        missing = num_images - sum(lines.done())
        if missing:
            raise UserError(
                f"{self.progress} has no results of {missing} of the {num_images} images, which "
                "other processes should have written: it must be one folder that all machines see"
            )
        summary = write_results(lines, num_images, classes, self.results_file, self.images_file)
        lines.close()
        summary = dataclasses.asdict(summary)
        self._write_state(settings, summary)
        shutil.rmtree(self.progress, ignore_errors=True)
        return summary


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output: cannot make the folder {folder}: {e.strerror}") from e
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output: cannot write to the folder {folder}")
