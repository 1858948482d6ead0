"""What the pages show: fenced blocks, and the commands and code in them. README.md is one of the pages."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:vla-mot|lerobot-\w+|python (?:tools|benchmarks)/)[^`]*)`(?!`)")
SHELL = ("", "sh", "console")
"""Blocks without a language hold commands, or something else."""
PROGRAM = re.compile(r"(vla-mot|lerobot-\w+|torchrun|python|make|pip|tensorboard)\b")
"""By these a command is known in a block that does not say that it is a shell's."""
ASSIGNED = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block. title: the file that it would be, or empty."""

    page: str
    line: int
    language: str
    title: str
    text: str


@dataclass(frozen=True)
class Command:
    """One command, as a shell would split it, without what only stands for something (`…`).

    text: as it is written, on one line. whole: nothing stands for something. fenced: in a block, not in a sentence.
    """

    page: str
    line: int
    words: tuple[str, ...]
    text: str
    whole: bool = True
    fenced: bool = True

    @property
    def program(self) -> str:
        return self.words[0]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for fence in FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', fence[2])
        line = text[: fence.start()].count("\n") + 2
        yield Block(name_of(page), line, fence[1], title[1] if title else "", fence[3])


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]


def commands_of(page: Path) -> Iterator[Command]:
    """Those in blocks, then those in sentences."""
    variables: dict[str, str] = {}
    for block in blocks_of(page):
        if block.language in SHELL:
            yield from _in_block(block, variables)
    text = page.read_text()
    prose = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    for found in INLINE.finditer(prose):
        line, written = prose[: found.start()].count("\n") + 1, " ".join(found[1].split())
        if command := _read(name_of(page), line, re.sub(r"<[^>]*>", "x", written), written, fenced=False):
            yield command


def all_commands() -> list[Command]:
    return [command for page in PAGES for command in commands_of(page)]


def _in_block(block: Block, variables: dict[str, str]) -> Iterator[Command]:
    line = block.line
    for written in re.split(r"(?<!\\)\n", block.text):
        joined = written.replace("\\\n", " ").strip()
        known = PROGRAM.match(re.sub(r"^(\w+=\S+ )*", "", joined))
        if joined.startswith("export "):
            for name, value in (word.split("=", 1) for word in shlex.split(joined, comments=True)[1:]):
                variables[name] = Template(value).safe_substitute(variables)
        elif known or (block.language == "sh" and joined and not joined.startswith("#")):
            expanded = Template(re.sub(r"\$\(\(.*?\)\)", "2", joined)).safe_substitute(variables)
            if command := _read(block.page, line, expanded, joined, fenced=True):
                yield command
        line += written.count("\n") + 1


def _read(page: str, line: int, expanded: str, written: str, *, fenced: bool) -> Command | None:
    words = shlex.split(expanded, comments=fenced)
    while words and ASSIGNED.match(words[0]):  # of the environment
        words.pop(0)
    if words and words[0] == "torchrun":
        words = words[words.index("vla-mot") :]
    kept = [word for word in words if word != "…" and not word.endswith("=…")]
    plain = shlex.split(written, comments=fenced)
    return Command(page, line, tuple(kept), " ".join(plain), "…" not in expanded, fenced) if kept else None
