"""The pages that people read, cut into blocks, commands, links and anchors."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.md"))
PAGES += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "tools/README.md")]
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]+?) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``mark`` is the comment on the line above it, which says why no test runs it."""

    page: Path
    language: str
    text: str
    mark: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text.splitlines()[0][:60]}"


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    return tuple(Block(page, m["language"], m["text"], m["mark"]) for m in _BLOCK.finditer(page.read_text()))


def prose(page: Path) -> str:
    """A page without its blocks and comments."""
    return re.sub(r"<!--.*?-->", "", _BLOCK.sub("", page.read_text()), flags=re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block: continued lines joined, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in shlex.split(line, comments=True):
            if word in ("&&", ";"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def inline_commands(page: Path) -> Iterator[list[str]]:
    """Commands of ours between backticks in the running text, but for those that leave something out."""
    for text in re.findall(r"`(python (?:-m dowser_pl|tools/|benchmarks/)[^`]*)`", prose(page)):
        if not re.search(r"[…|<>]|\.\.\.", text):
            yield shlex.split(text.replace("\n", " "))


def write_files(folder: Path) -> Path:
    """Write the blocks that name their file in the first line into a folder."""
    for page in PAGES:
        for block in blocks(page):
            name = re.match(r"# ([\w/]+\.(yaml|py))\n", block.text)
            if name:
                (folder / name[1]).write_text(block.text)
    return folder


def anchors(page: Path) -> set[str]:
    """What a heading of the page is called in a link, as both GitHub and the site make it."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))
