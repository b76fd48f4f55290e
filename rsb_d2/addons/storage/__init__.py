"""Images in tar files, behind ``https://`` and in buckets, with a disk cache of limited size."""

import io
import os
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, List

from ...data.opening import Storage
from ...files import is_http, join_address, path_manager
from .remote import RemoteError, is_remote, read_remote, remote_exists, set_cache
from .tar import open_member, open_tar, split_tar_path

if TYPE_CHECKING:
    from detectron2.config import CfgNode


class TarStorage(Storage):
    """Members of uncompressed tar files: ``images.tar!/a.jpg``."""

    def holds(self, path: str) -> bool:
        return split_tar_path(path) is not None

    def open(self, path: str, *, fresh: bool = False) -> BinaryIO:
        return open_member(path)

    def is_folder(self, path: str) -> bool:
        return path_manager(path).isfile(split_tar_path(path)[0])

    def find_missing(self, file_names: List[str], image_root: str) -> List[str]:
        try:
            index = open_tar(split_tar_path(image_root)[0])
        except OSError:
            return list(file_names)
        members = [split_tar_path(os.path.join(image_root, name))[1] for name in file_names]
        return [name for name, member in zip(file_names, members) if index.find(member) is None]


class RemoteStorage(Storage):
    """Files whose path has a scheme, read with retries and copied to a disk cache."""

    def configure(self, cfg: "CfgNode") -> None:
        from ...data.workers import SETTINGS

        setting = os.path.expanduser(cfg.DATASETS.CACHE)
        if setting == "off":
            folder = ""
        else:
            folder = os.path.join(os.path.abspath(setting), "images") if setting else None
        SETTINGS["copies of images"] = partial(set_cache, folder, cfg.DATASETS.IMAGE_CACHE_GB)
        SETTINGS["copies of images"]()

    def holds(self, path: str) -> bool:
        return is_remote(path)

    def open(self, path: str, *, fresh: bool = False) -> BinaryIO:
        return io.BytesIO(read_remote(path, fresh=fresh))

    def is_stale(self, error: Exception) -> bool:
        # The cached copy may be damaged, or may have been damaged during the download.
        return not isinstance(error, (RemoteError, FileNotFoundError))

    def is_folder(self, path: str) -> bool:
        return True

    def join(self, image_root: str, file_name: str) -> str:
        join = join_address if is_http(image_root) else os.path.join
        return join(image_root, file_name)

    def is_file(self, path: str) -> bool:
        return bool(remote_exists(path))
