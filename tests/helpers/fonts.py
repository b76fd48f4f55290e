"""Fonts of a test: each of its characters is a black square as large as the font."""

import matplotlib
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from rsb_d2 import visualization

CORNERS = ((0, 1000), (1000, 1000), (1000, 0))


def make_font(path, characters, family="Squares", style="Regular"):
    """Write a TrueType font; returns its path as a text."""
    pen = TTGlyphPen(None)
    for move, point in ((pen.moveTo, (0, 0)), *((pen.lineTo, p) for p in CORNERS)):
        move(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(c): "square" for c in characters})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": family, "styleName": style})
    builder.setupOS2(sTypoAscender=1000, usWinAscent=1000)
    builder.setupPost()
    builder.save(path)
    return str(path)


def use_only(monkeypatch, *paths):
    """Have these fonts installed, and those of matplotlib, whatever this machine has."""
    manager = font_manager.fontManager
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(paths))
    folder = matplotlib.get_data_path()
    monkeypatch.setattr(manager, "ttflist", [e for e in manager.ttflist if folder in e.fname])
    monkeypatch.setattr(visualization, "_font_of", {})
    monkeypatch.setattr(visualization, "_warned_of", set())
    visualization.text_mask.cache_clear()
