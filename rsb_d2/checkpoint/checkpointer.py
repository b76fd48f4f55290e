"""The checkpointer, through which all weights get into a model."""

import logging
import os
from typing import Any, Dict, List

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from ..files import whole_file
from ..utils import unwrap
from .files import read_checkpoint, save_torch, to_plain
from .formats import CAFFE2_RESNET, recognize
from .loading import LoadReport, find_backbone, load_weights, state_dict_of
from .run_folder import LAST_CHECKPOINT, find_newest_complete, pop_found
from .sources import check_architecture, locate

logger = logging.getLogger(__name__)


class Checkpointer(DetectionCheckpointer):
    """Detectron2's ``DetectionCheckpointer``, strict about the backbone and safe about files.

    It is constructed, saves and resumes as Detectron2's. It loads files in any of the formats in
    :data:`rsb_d2.checkpoint.FORMATS`.

    Args:
        model (nn.Module): a detector, or a part of one, with a timm backbone in it, or a model with
            a method ``load_pretrained``; may be wrapped for data parallelism. Any other model is
            loaded as Detectron2 loads it.
        save_dir (str): where to save and to look for checkpoints.
        save_to_disk (bool or None): ``None``: only the main process saves.
        checkpointables: more objects with ``state_dict`` and ``load_state_dict``.

    Attributes:
        report (LoadReport or None): of the last :meth:`load`.
    """

    report: LoadReport | None = None

    def load(self, path: str, checkpointables: List[str] | None = None) -> Dict[str, Any]:
        """Load weights, and log in one block the loaded parts and their sources.

        Args:
            path (str): a local file, ``timm://NAME`` or another path of Detectron2's
                ``PathManager``; ``""`` loads nothing.
            checkpointables (list[str] or None): which of the checkpointables to load, too, if
                the file has them; ``None`` for all. A file with one of them is a run to resume,
                and must hold the complete model.

        Returns:
            dict[str, Any]: the other entries of the file.

        Raises:
            UserError: if there is no such file, if it is damaged or unsafe, or if it does not
                give the backbone every parameter and buffer. The model is unchanged then.
        """
        self.report = None
        if not path:
            logger.info("No weights are loaded: the model starts from random ones.")
            return {}
        _, backbone = find_backbone(self.model)
        model = unwrap(self.model)
        # A model that is not a detector loads weights of any format in its own way.
        loads_itself = hasattr(model, "load_pretrained")
        network = model if loads_itself else backbone
        if network is not None:
            check_architecture(path, network.name)
        local_path = locate(path)
        checkpoint = pop_found(local_path) or read_checkpoint(local_path)
        names = self.checkpointables if checkpointables is None else checkpointables
        names = [name for name in names if name in checkpoint]
        if network is None:
            self._load_stock_model(checkpoint)
        else:
            arguments = state_dict_of(checkpoint), path, local_path, bool(names)
            if loads_itself:
                self.report = model.load_pretrained(*arguments)
            else:
                self.report = load_weights(self.model, *arguments)
            needs_attention = self.report.other_shape or self.report.differs
            logger.log(logging.WARNING if needs_attention else logging.INFO, str(self.report))
        for name in names:
            logger.info(f"Loading {name} from {path}")
            self.checkpointables[name].load_state_dict(checkpoint.pop(name))
        return checkpoint

    def _load_stock_model(self, checkpoint: Dict[str, Any]) -> None:
        if recognize(checkpoint["model"]) is CAFFE2_RESNET:
            checkpoint.update(__author__="Caffe2", matching_heuristics=True)
        incompatible = self._load_model(checkpoint)
        if incompatible is not None:
            self._log_incompatible_keys(incompatible)

    def resume_or_load(self, path: str, *, resume: bool = True) -> Dict[str, Any]:
        """Resume from the newest complete checkpoint in ``save_dir``, or load ``path``.

        Args:
            path (str): as of :meth:`load`.
            resume (bool): whether to look for checkpoints in ``save_dir``; those that are damaged
                are reported and skipped. All processes use the one that the main process finds.

        Returns:
            dict[str, Any]: as of :meth:`load`.

        Raises:
            UserError: as :meth:`load`, and if there are checkpoints and all are damaged.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        if "://" in self.save_dir:
            return self.load(self.get_checkpoint_file())
        newest = find_newest_complete(self.save_dir) if comm.is_main_process() else None
        return self.load(comm.all_gather(newest)[0])

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model and the checkpointables, in types that :meth:`load` reads.

        Args:
            name (str): the file's name in ``save_dir``, without ``.pth``.
            kwargs: more to save.

        Raises:
            UserError: if the file cannot be written, or if something to be saved is more than
                tensors and plain values.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        for key, checkpointable in self.checkpointables.items():
            data[key] = to_plain(checkpointable.state_dict(), key)
        data.update({key: to_plain(value, key) for key, value in kwargs.items()})
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info(f"Saving checkpoint to {path}")
        if "://" in path:
            with self.path_manager.open(path, "wb") as f:
                torch.save(data, f)
        else:
            save_torch(path, data)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the newest checkpoint in ``last_checkpoint``, completely or not at all."""
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
            return
        with whole_file(os.path.join(self.save_dir, LAST_CHECKPOINT)) as f:
            f.write(last_filename_basename.encode())
