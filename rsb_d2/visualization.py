"""Drawing that all pictures share: colors, sizes, text in any script, grids of images.

Class names and file names are never interpreted as markup. Matplotlib and Pillow draw a box for a
character that their font does not have; here, each character gets an installed font that has it.
"""

import functools
import itertools
import logging
import math
import os
import unicodedata
from typing import Dict, Iterable, List, Sequence, Set, Tuple

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)

Color = Tuple[int, int, int]  # RGB in 0 to 255

# The colors of the classes, in turn.
PALETTE = [
    tuple(round(255 * c) for c in matplotlib.colormaps["tab10"](i)[:3])
    for i in (0, 1, 2, 3, 4, 6, 8, 9)
]

# Of a JPEG, in pixels: JPEG_MAX_DIMENSION of https://github.com/libjpeg-turbo/libjpeg-turbo.
LONGEST_SIDE = 65_500
MAX_PIXELS = 20_000_000  # of a grid of images

_MIN_SIDE = 16  # of a drawn image, in pixels; masks and boxes vanish on a smaller one
MAX_LABELS = 60  # of an image; more labels would cover each other and the image

# DejaVu Sans comes with matplotlib.
_BASE_FONT = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
_BOX = "\N{WHITE SQUARE}"  # replaces a character that no font has
_UNASSIGNED = 0xD0000  # a code point that only fallback fonts have, which show boxes for all
# First words of the Unicode names of characters in the package fonts-noto-cjk.
_CJK = ("CJK", "HANGUL", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH")


def class_colors(num_classes: int) -> List[Color]:
    """Return a color for each class; the palette repeats."""
    return [PALETTE[i % len(PALETTE)] for i in range(num_classes)]


def readable_scale(image: np.ndarray, short_side: int = 320) -> float:
    """Return the factor that enlarges a small image until its labels are readable.

    It is 1 or more, but less for a long image, so that no side exceeds JPEG's 65,500 pixels.
    """
    sides = image.shape[:2]
    return min(max(1.0, short_side / min(sides)), LONGEST_SIDE / max(sides))


def drawn_size(height: int, width: int, max_height: int, max_width: int) -> Tuple[int, int]:
    """Return the height and width at which an image is drawn: readable, and within limits.

    A small image is enlarged to 320 pixels on its shorter side. A very long and narrow one is
    widened.
    """
    scale = max(1.0, 320 / min(height, width))
    scale = min(scale, max_height / height, max_width / width)
    return max(round(height * scale), _MIN_SIDE), max(round(width * scale), _MIN_SIDE)


# ---- text ----


def drawable(text: str) -> str:
    """Return text in one line, with a box for each character that no installed font has.

    Characters without a shape, such as joiners, are left out if no font has them. A warning, once
    for each, names the packages of fonts that have the missing characters.
    """
    text = "".join(" " if c.isspace() else c for c in str(text))
    fonts = _fonts_of(text)
    return "".join(c if fonts[c] else "" if _is_shapeless(c) else _BOX for c in text)


def _is_shapeless(character: str) -> bool:
    is_variation_selector = "VARIATION SELECTOR" in unicodedata.name(character, "")
    return unicodedata.category(character) in ("Cc", "Cf") or is_variation_selector


_font_of: Dict[str, str | None] = {}  # paths of fonts by character; None if no font has it


def _fonts_of(text: Iterable[str]) -> Dict[str, str | None]:
    """Return the path of a font for each character; None if no installed font has it."""
    missing = set(text) - _font_of.keys()

    def take(path: str) -> None:
        found = _characters_in(path, missing)
        missing.difference_update(found)
        _font_of.update(dict.fromkeys(found, path))

    for path in dict.fromkeys((_BASE_FONT, *filter(None, _font_of.values()))):
        take(path)
    if missing:
        # Matplotlib's list is stored in a file and lacks fonts that were installed later.
        paths = {
            *font_manager.findSystemFonts(),
            *(e.fname for e in font_manager.fontManager.ttflist),
        }
        paths = sorted(paths, key=_rank)
        while missing:
            path = max(paths, key=lambda path: len(_characters_in(path, missing)))
            if not _characters_in(path, missing):
                break
            take(path)
    _font_of.update(dict.fromkeys(missing))
    _warn_of({c for c in missing if unicodedata.category(c)[0] != "C" and not _is_shapeless(c)})
    return _font_of


def _open(path: str) -> FT2Font | None:
    """Open a font; None for damaged ones, bitmaps such as colored emoji, and fallback fonts."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return None
    return font if font.scalable and not font.get_char_index(_UNASSIGNED) else None


def _characters_in(path: str, characters: Set[str]) -> Set[str]:
    font = _open(path) if characters else None
    return {c for c in characters if font and font.get_char_index(ord(c))}


def _rank(path: str) -> tuple:
    """Return a key that sorts regular fonts without serifs first."""
    font = _open(path)
    if font is None:
        return (True,)
    is_plain = font.style_name in ("Regular", "Normal", "Book", "Roman")
    special = any(word in font.family_name for word in ("Serif", "Mono", "Coding", "Myeongjo"))
    return False, not is_plain, special, font.family_name, path


_warned_of: Set[str] = set()


def _warn_of(characters: Set[str]) -> None:
    packages: Dict[str, str] = {}  # of Debian and Ubuntu
    for c in sorted(characters):
        package = "fonts-symbola" if unicodedata.category(c)[0] == "S" else "fonts-noto-core"
        if unicodedata.name(c, "").replace("-", " ").split(" ")[0] in _CJK:
            package = "fonts-noto-cjk"
        packages[package] = packages.get(package, "") + c
    for package, missing in packages.items():
        if package in _warned_of:
            continue
        _warned_of.add(package)
        shown = missing[:10] + (" ..." if len(missing) > 10 else "")
        logger.warning(
            f"No installed font has {shown}: pictures show boxes "
            f"instead. Install a font that does (apt-get install {package}), or copy one to "
            "~/.local/share/fonts."
        )


def make_plain(figure: Figure) -> None:
    """Let matplotlib draw all text of a figure literally, in fonts that have its characters.

    Args:
        figure (Figure): ready to be saved. The labels of its ticks must be :func:`drawable`.
    """
    for text in figure.findobj(Text):
        make_text_plain(text, text.get_text())


def make_text_plain(artist: Text, text: str) -> None:
    """Set the text of one artist so that matplotlib draws it literally; see :func:`make_plain`."""
    text = "\n".join(map(drawable, text.split("\n")))
    artist.set(text=text, parse_math=False, usetex=False, fontfamily=_families(text))


def _families(text: str) -> List[str]:
    """Return the font families for a text, in the order in which matplotlib tries them."""
    fonts = _fonts_of(text)
    paths = dict.fromkeys((_BASE_FONT, *filter(None, (fonts[c] for c in text))))
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in paths:
        if path not in known:
            font_manager.fontManager.addfont(path)
    return [FT2Font(path).family_name for path in paths]


@functools.lru_cache(maxsize=4096)
def text_mask(text: str, size: int) -> np.ndarray:
    """Draw one line of text with a font of ``size`` pixels.

    Returns:
        ndarray: (H, W), float32, 0 for no ink to 1, with a small margin.
    """
    text = drawable(text)
    fonts = _fonts_of(text)
    runs = [
        (_font(path or _BASE_FONT, size), "".join(characters))
        for path, characters in itertools.groupby(text, key=fonts.get)
    ]
    metrics = [font.getmetrics() for font, _ in runs] or [_font(_BASE_FONT, size).getmetrics()]
    ascent, descent = map(max, zip(*metrics))
    margin = max(size // 12, 1)
    width = sum(math.ceil(font.getlength(part)) for font, part in runs)
    image = Image.new("L", (width + 2 * margin, ascent + descent + 2 * margin))
    draw, left = ImageDraw.Draw(image), margin
    for font, part in runs:
        draw.text((left, margin + ascent), part, fill=255, font=font, anchor="ls")
        left += math.ceil(font.getlength(part))
    return np.asarray(image, dtype=np.float32) / 255


@functools.lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


# ---- grids ----

Cell = Tuple[np.ndarray, str, Color]  # an RGB image, its caption, and the color of the caption


def image_grid(
    cells: Sequence[Cell],
    columns: int,
    *,
    margin: int = 8,
    text_size: int = 14,
    text_below: bool = False,
    group: int = 0,
) -> np.ndarray:
    """Lay out images on white, each with a caption of one line that is made to fit.

    Args:
        cells (sequence of Cell): row by row. Each gets as much space as the largest image.
        columns (int): number of images in a row.
        margin (int): pixels around a cell.
        text_size (int): of the font, in pixels.
        text_below (bool): whether the caption is below the image instead of above.
        group (int): number of cells of a row that belong together; 0 for all.

    Returns:
        ndarray: RGB, (H, W, 3), uint8.
    """
    height = max(image.shape[0] for image, _, _ in cells)
    width = max(image.shape[1] for image, _, _ in cells)
    columns = min(columns, len(cells))
    group = group or columns
    text_height = 2 * text_size
    rows = -(-len(cells) // columns)
    size = (
        rows * (height + text_height + margin) + margin,
        columns * (width + margin) + -(-columns // group) * margin,
    )
    grid = np.full((*size, 3), 255, np.uint8)
    for i, (image, text, color) in enumerate(cells):
        row, column = divmod(i, columns)
        top = row * (height + text_height + margin) + margin
        left = column * (width + margin) + (column // group + 1) * margin
        text_top = top + height if text_below else top
        top += 0 if text_below else text_height
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
        _write(grid[text_top : text_top + text_height, left : left + width], text, text_size, color)
    return grid


def _write(region: np.ndarray, text: str, size: int, color: Color) -> None:
    """Write one line of text into a part of an image, with a smaller font if it is long."""
    ink = text_mask(text, size)
    if ink.shape[1] > region.shape[1]:
        ink = text_mask(text, max(size * region.shape[1] // ink.shape[1], size * 2 // 3))
    ink = ink[: region.shape[0], : region.shape[1], None]
    top = (region.shape[0] - ink.shape[0]) // 2
    part = region[top : top + ink.shape[0], : ink.shape[1]]
    part[:] = (part * (1 - ink) + np.float32(color) * ink).astype(np.uint8)
