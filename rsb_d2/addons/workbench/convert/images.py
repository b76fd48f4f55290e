"""The image that a label file is of, where each file names its own."""

import os
from typing import Dict, List, Sequence, Tuple

from ....data.images import BadImageError, image_size, is_image_name
from .records import Picture, Problems, split_of

Size = Tuple[int, int]


class ImageFinder:
    """Finds images by the names in label files, or by the names of these.

    Args:
        root (str): folder of the data set.
        images (str): folder of the images; ``""`` for the places below.
        beside (sequence of str): folders beside that of a label file to look into.
    """

    def __init__(self, root: str, images: str, beside: Sequence[str] = ()):
        self._root = root
        self._images = images
        self._beside = beside
        self._listings: Dict[str, Dict[str, List[str]]] = {}

    def find(self, file: str, name: str, problems: Problems) -> Tuple[str | None, Size]:
        """The image of a label file, and its size.

        Args:
            file (str): of labels.
            name (str): what it says its image is called; a path of any system, or ``""``.
            problems (Problems): gets a line if there is no such image, or it cannot be read.

        Returns:
            str or None, tuple[int, int]: absolute path, or ``None``; width and height.
        """
        path = self.look(file, name)
        if path is None:
            problems.add(file, f"is of the image {name or '(no name)'}, which is not there")
            return None, (0, 0)
        try:
            return path, image_size(path)
        except BadImageError as e:
            problems.add(file, str(e))
            return None, (0, 0)

    def look(self, file: str, name: str) -> str | None:
        """As :meth:`find`; the path alone."""
        name = name.replace("\\", "/")
        folders = self._folders(file)
        for candidate in (name, os.path.basename(name)):
            for folder in folders:
                path = os.path.join(folder, candidate)
                if candidate and os.path.isfile(path):
                    return os.path.abspath(path)
        # Renamed since: the image of the same name as the label file, if there is one alone.
        for stem in (os.path.basename(name), os.path.basename(file)):
            for folder in folders:
                found = self._listing(folder).get(os.path.splitext(stem)[0], [])
                if len(found) == 1:
                    return os.path.abspath(os.path.join(folder, found[0]))
        return None

    def unlabelled(self, labelled: Dict[str, str]) -> List[Picture]:
        """The images in the folders looked into that no label file is of: background.

        Args:
            labelled (dict[str, str]): real paths of those that have one.

        Raises:
            BadImageError: if one cannot be read.
        """
        paths = {
            os.path.abspath(os.path.join(folder, name))
            for folder, listing in self._listings.items()
            for names in listing.values()
            for name in names
        }
        # Once, where a folder is a link to another.
        found = {os.path.realpath(path): path for path in sorted(paths, reverse=True)}
        paths = sorted(path for real, path in found.items() if real not in labelled)
        return [Picture(path, image_size(path)) for path in paths]

    def by_folder(self, pictures: List[Picture]) -> Dict[str, List[Picture]]:
        """Splits by folders called ``train``, ``val`` and ``test``; all is ``train`` without."""
        splits: Dict[str, List[Picture]] = {}
        for picture in pictures:
            name = split_of(os.path.abspath(picture.source or picture.path), self._absolute_root)
            splits.setdefault(name or "train", []).append(picture)
        return splits

    def other_size(self, image: str, said: Size, size: Size) -> str:
        """What to say of an image that has another size than its labels say."""
        reason = f"says {said[0]} x {said[1]} pixels, but {image} has {size[0]} x {size[1]}"
        if said == size[::-1]:
            reason += "; if its EXIF orientation turns it, label the upright image"
        return reason

    @property
    def _absolute_root(self) -> str:
        return os.path.abspath(self._root)

    def _folders(self, file: str) -> List[str]:
        if self._images:
            folders = [self._images]
        else:
            own = os.path.dirname(file) or "."
            folders = [os.path.join(os.path.dirname(own) or ".", name) for name in self._beside]
            folders = [folder for folder in folders if os.path.isdir(folder)] + [own]
        for folder in folders:
            self._listing(folder)
        return folders

    def _listing(self, folder: str) -> Dict[str, List[str]]:
        """Names of the images in a folder by what they are without their endings."""
        if folder not in self._listings:
            listing: Dict[str, List[str]] = {}
            names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
            for name in names:
                if is_image_name(name):
                    listing.setdefault(os.path.splitext(name)[0], []).append(name)
            self._listings[folder] = listing
        return self._listings[folder]
