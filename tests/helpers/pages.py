"""What is written for people: the pages, their code blocks, commands, headings and links."""

import re
from typing import List, NamedTuple

from .paths import ROOT

PAGES = sorted(
    str(p.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "packaging/*.md")
    for p in ROOT.glob(pattern)
)

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
