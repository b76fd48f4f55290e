"""From what MODEL.WEIGHTS says to a file on this machine."""

import os

from detectron2.utils.file_io import PathManager

from ..errors import UserError
from ..files import escape_address
from . import timm_hub, zoo


def locate(path: str) -> str:
    """Find the file that a path means, and fetch it if it is elsewhere.

    Args:
        path (str): a local path, ``timm://NAME``, ``zoo://NAME``, or any other that Detectron2's
            ``PathManager`` handles: ``https://…``, ``detectron2://…``; or ``file://…``.

    Returns:
        str: a local file; of ``timm://`` it is the one in Hugging Face's cache, of ``zoo://`` the
            one in Detectron2's.

    Raises:
        UserError: if there is no such file or it cannot be fetched.
    """
    if path.startswith(timm_hub.PREFIX):
        return timm_hub.fetch(path[len(timm_hub.PREFIX) :])
    if zoo.is_published(path):
        return zoo.fetch(path)
    try:
        path_or_address = os.path.expanduser(path.removeprefix("file://"))
        local_path = PathManager.get_local_path(escape_address(path_or_address))
    except UserError:
        raise
    except Exception as e:  # each handler has its own
        raise UserError(f"cannot fetch {path}: {e}") from e
    if os.path.isdir(local_path):
        raise UserError(f"{path} is a folder: name the checkpoint file in it")
    if not os.path.isfile(local_path):
        raise UserError(f"there is no file {path}")
    return local_path
