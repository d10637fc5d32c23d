"""What the pool and the records need to know of a module, read off its syntax tree in one walk.

Line numbers here count from 0, as the indices of `Facts.lines` do.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z][A-Za-z_]{2,22}[A-Za-z]")
_LITERAL = re.compile(r"""[1-9]\d{1,6}|\d{1,3}\.\d{1,4}|0x[0-9a-fA-F]{2,6}|'[\w./:-]{3,20}'|"[\w./:-]{3,20}\"""")
_BODY_LINES = 12
_LONGEST_HEADER = 72


@dataclass(frozen=True)
class Definition:
    """A function or class whose first line is complete in itself.

    Attributes:
        name: its name.
        header: its `def` or `class` line, without indentation.
        body: up to 12 lines below the header (docstring first, if any), without the header's indentation.
        docstring: the docstring without indentation, "" if it has none.
        owner: the header of the class around it, "" at the top of the module.
    """

    name: str
    header: str
    body: tuple[str, ...]
    docstring: str
    owner: str


@dataclass(frozen=True)
class Facts:
    """One module.

    Attributes:
        module: its id.
        lines: its text, line by line, without trailing white space.
        starts: the lines where a statement of the module or of a top-level class begins: an excerpt may begin there.
        statements: the lines where any statement begins: another line may be put before them.
        prose: the lines of strings that run over several lines, docstrings above all.
        definitions: its functions and classes, in the order of their lines.
        names: the names that it assigns to, without digits, each once.
        literals: its numbers and short strings, as written, each once.
    """

    module: str
    lines: tuple[str, ...]
    starts: tuple[int, ...]
    statements: frozenset[int]
    prose: frozenset[int]
    definitions: tuple[Definition, ...]
    names: tuple[str, ...]
    literals: tuple[str, ...]


def read_facts(module: str, text: str) -> Facts | None:
    """Reads one module; None where this Python cannot parse it.

    Args:
        module: its id.
        text: its source, lines ended by a line feed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in old files are none of ours
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = tuple(line.rstrip() for line in text.split("\n"))
    statements: set[int] = set()
    prose: set[int] = set()
    names: dict[str, None] = {}  # a dict keeps the order of the first finds
    literals: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            assert node.end_lineno is not None
            if node.end_lineno > node.lineno:
                prose.update(range(node.lineno - 1, node.end_lineno))
            elif lines[node.lineno - 1].isascii():  # columns count bytes
                written = lines[node.lineno - 1][node.col_offset : node.end_col_offset]
                if _LITERAL.fullmatch(written):
                    literals[written] = None
        elif isinstance(node, ast.JoinedStr):
            assert node.end_lineno is not None
            prose.update(range(node.lineno - 1, node.end_lineno))
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store) and _NAME.fullmatch(node.id):
                names[node.id] = None
        elif isinstance(node, ast.stmt):
            statements.add(_first_line(node))
    statements -= {number for number in statements if lines[number].lstrip().startswith("elif")}
    return Facts(
        module=module,
        lines=lines,
        starts=tuple(sorted(set(_outer_lines(tree)) & statements - prose)),
        statements=frozenset(statements - prose),
        prose=frozenset(prose),
        definitions=tuple(_definitions(tree.body, lines, owner="")),
        names=tuple(names),
        literals=tuple(literals),
    )


def _first_line(node: ast.stmt) -> int:
    """The line of a statement, or of its first decorator."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1


def _outer_lines(tree: ast.Module) -> Iterator[int]:
    for node in tree.body:
        yield _first_line(node)
        if isinstance(node, ast.ClassDef):
            yield from (_first_line(inner) for inner in node.body)


def _definitions(body: list[ast.stmt], lines: tuple[str, ...], owner: str) -> Iterator[Definition]:
    """Yields the definitions of a module, and of its classes, that fit the form; those inside functions are left."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        line = lines[node.lineno - 1]
        header = line.lstrip()
        complete = header.endswith(":") and header.count("(") == header.count(")") and node.body[0].lineno > node.lineno
        if complete and header.isascii() and len(header) <= _LONGEST_HEADER:
            assert node.end_lineno is not None
            indent = line[: len(line) - len(header)]
            below = lines[node.lineno : min(node.end_lineno, node.lineno + _BODY_LINES)]
            docstring = ast.get_docstring(node) or ""
            yield Definition(node.name, header, tuple(text.removeprefix(indent) for text in below), docstring, owner)
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, lines, owner=header if complete else f"class {node.name}:")
