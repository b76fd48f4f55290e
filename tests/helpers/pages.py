"""What is written for people: the pages, their code blocks, commands, headings and links."""

import re
from typing import List, NamedTuple

from .paths import ROOT

PAGES = sorted(
    str(p.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "packaging/*.md")
    for p in ROOT.glob(pattern)
)

_FOLDERS = ("configs", "docs", "packaging", "rsb_d2", "tests", "tools")
_FENCE = re.compile(r"^ *(`{3,}|~{3,}) *(\S*)[^\n]*\n(.*?)^ *\1 *$", re.M | re.S)


class Block(NamedTuple):
    language: str
    text: str


def read(page: str) -> str:
    return (ROOT / page).read_text()


def find_blocks(text: str, *languages: str) -> List[Block]:
    """The fenced code blocks of a text, in order; of some languages or of all."""
    found = [Block(m[2], m[3]) for m in _FENCE.finditer(text)]
    return [block for block in found if not languages or block.language in languages]


def split_commands(block: str) -> List[str]:
    """The commands of a shell block, lines that end in a backslash joined; a script is one."""
    if block.startswith("#!"):
        return [block]
    lines = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def without_code(text: str) -> str:
    """The text without its fenced blocks."""
    return _FENCE.sub("", text)


def find_anchors(text: str) -> List[str]:
    """The anchors that GitHub gives to the headings of a text.

    Lower case; links and emphasis are their words; of the rest only letters, digits, hyphens and
    underscores stay, with a hyphen for each space; the second of a name gets a "-1".
    (https://docs.github.com/en/get-started/writing-on-github, "Section links")
    """
    anchors, seen = [], {}
    text = without_code(text)
    for heading in re.findall(r"^#{1,6} +(.+?)(?: +#+)? *$", text, re.M):
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        words = re.sub(r"(\*\*|\*|`)(.+?)\1", r"\2", words)
        anchor = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
        count = seen.get(anchor, 0)
        seen[anchor] = count + 1
        anchors.append(f"{anchor}-{count}" if count else anchor)
    return anchors + re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)


def find_links(text: str) -> List[str]:
    """The targets of all links and pictures of a text, but for those within code."""
    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "``", without_code(text), flags=re.S)
    return [
        *re.findall(r"\]\(\s*<?([^)\s>]*)>?(?:\s+\"[^\"]*\")?\s*\)", text),
        *re.findall(r"^ *\[[^\]^]+\]: *(\S+)", text, re.M),
        *re.findall(r"<(?:a|img)\b[^>]*?(?:href|src)=\"([^\"]*)\"", text),
        *re.findall(r"<(https?://[^>\s]*)>", text),
    ]


def find_paths(text: str) -> List[str]:
    """What is named in inline code and reads like a file or folder of this repository."""
    return re.findall(rf"`((?:{'|'.join(_FOLDERS)})/[\w./-]*)`", without_code(text))
