"""How tidy a checkout's package is, counted from its source: one row of a Markdown table, and the places behind it.

    python benchmarks/house.py [CHECKOUT] [--row]

Nothing is imported from the checkout. With `--row`, only the table is printed.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

PACKAGE = "greedylr_integrations"
WINDOW = 6  # lines of a duplicate
# Names of variables that hold a Decision, or what is made from one; we look for a number as their index.
TUPLES = {"decision", "record", "order", "command"}
NAMED = (ast.Name, ast.Attribute)
Node = TypeVar("Node", bound=ast.AST)


@dataclass(frozen=True, order=True)
class Sized:
    """A file, class or method and its number of lines."""

    lines: int
    name: str

    def __str__(self) -> str:
        return f"{self.lines} ({self.name})"


class Source:
    """A parsed file; `name` is its module, or the package itself for `__init__.py`."""

    def __init__(self, path: Path, root: Path) -> None:
        parts = path.relative_to(root).with_suffix("").parts
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.path = path.relative_to(root)
        self.lines = path.read_text(encoding="utf-8").splitlines()
        self.tree = ast.parse("\n".join(self.lines))
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def place(self, node: ast.expr | ast.stmt) -> str:
        return f"{self.path}:{node.lineno}  {self.lines[node.lineno - 1].strip()}"

    def nodes(self, kind: type[Node]) -> list[Node]:
        found = [node for node in ast.walk(self.tree) if isinstance(node, kind)]
        return sorted(found, key=lambda node: getattr(node, "lineno", 0))

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self.parents:
            node = self.parents[node]
            yield node

    def sizes(self, classes: bool) -> Iterator[Sized]:
        """Lines of each class, or of each function and method, decorators included."""
        for node in self.nodes(ast.stmt):
            if isinstance(node, ast.ClassDef if classes else ast.FunctionDef | ast.AsyncFunctionDef):
                start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                owner = "".join(f"{n.name}." for n in self.above(node) if isinstance(n, ast.ClassDef))
                yield Sized((node.end_lineno or start) - start + 1, f"{self.path.name}: {owner}{node.name}")

    def imports(self) -> Iterator[tuple[ast.stmt, set[str]]]:
        """Each import, with the names that may be modules; imports for type checkers only are left out."""
        for node in self.nodes(ast.stmt):
            if any(isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test) for n in self.above(node)):
                continue
            if isinstance(node, ast.Import):
                yield node, {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node)
                yield node, {base, *(f"{base}.{alias.name}" for alias in node.names)}

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, node.module] if node.module else parts)


def probes(source: Source, classes: set[str]) -> list[str]:
    """Where code asks what an object is or has: any hasattr, getattr with a constant, isinstance of our own class."""
    found = []
    for node in source.nodes(ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        second = node.args[1] if len(node.args) > 1 else ast.Constant(None)
        named = {n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(second) if isinstance(n, NAMED)}
        constant = isinstance(second, ast.Constant)
        if name == "hasattr" or (name == "getattr" and constant) or (name == "isinstance" and named & classes):
            found.append(source.place(node))
    return found


def numbered(source: Source) -> list[str]:
    """An approximation: a number as the index of a variable or attribute that is named like a decision or record."""
    found = []
    for node in source.nodes(ast.Subscript):
        value = node.value
        name = value.attr if isinstance(value, ast.Attribute) else value.id if isinstance(value, ast.Name) else ""
        if name in TUPLES and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int):
            found.append(source.place(node))
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    reach = {}
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                waiting += graph[name]
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in graph if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def duplicates(sources: list[Source]) -> list[str]:
    """Pairs of equal windows of 6 lines, in two files, or apart in one; blank lines and imports do not count."""
    windows: dict[tuple[str, ...], list[tuple[Source, int, int]]] = defaultdict(list)
    for source in sources:
        imports = [node for node in source.nodes(ast.stmt) if isinstance(node, ast.Import | ast.ImportFrom)]
        skipped = {n for node in imports for n in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
        lines = [(n, " ".join(line.split())) for n, line in enumerate(source.lines, 1) if n not in skipped]
        kept = [(n, line) for n, line in lines if line]
        for at in range(len(kept) - WINDOW + 1):
            window = kept[at : at + WINDOW]
            windows[tuple(text for _, text in window)].append((source, at, window[0][0]))
    return [
        f"{a.path}:{line} = {b.path}:{other_line}"
        for found in windows.values()
        for i, (a, at, line) in enumerate(found)
        for b, other, other_line in found[i + 1 :]
        if a is not b or other - at >= WINDOW
    ]


def count(root: Path) -> tuple[dict[str, object], dict[str, list[str]]]:
    """The columns of the table's row, and the places that were counted."""
    sources = [Source(path, root) for path in sorted((root / PACKAGE).rglob("*.py"))]
    if not sources:
        raise SystemExit(f"{root} has no {PACKAGE}: name the folder of a checkout")
    known = {source.name for source in sources}
    classes = {node.name for source in sources for node in source.nodes(ast.ClassDef)}
    graph: dict[str, set[str]] = {name: set() for name in known}
    inside = []
    for source in sources:
        for node, names in source.imports():
            # `from package import module` needs the module, `from package import name` the package's __init__
            modules = {name for name in names & known if not any(n.startswith(name + ".") for n in names & known)}
            graph[source.name] |= modules - {source.name}
            standard = any(name.split(".")[0] in sys.stdlib_module_names for name in names)
            inner = any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) for n in source.above(node))
            if inner and (modules or standard):
                inside.append(source.place(node))
    places = {
        "Probes": [place for source in sources for place in probes(source, classes)],
        "Import circles": [" <-> ".join(circle) for circle in circles(graph)],
        "Imports in functions": inside,
        "Decisions by number": [place for source in sources for place in numbered(source)],
        "Duplicate windows": duplicates(sources),
    }
    row: dict[str, object] = {
        "Lines": sum(len(source.lines) for source in sources),
        "Files": len(sources),
        "Largest file": max(Sized(len(source.lines), str(source.path.name)) for source in sources),
        "Largest class": max(size for source in sources for size in source.sizes(classes=True)),
        "Longest method": max(size for source in sources for size in source.sizes(classes=False)),
        **{name: len(found) for name, found in places.items()},
    }
    return row, places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--row", action="store_true", help="print the table only")
    args = parser.parse_args()
    row, places = count(args.checkout)
    for cells in (row, ["---"] * len(row), map(str, row.values())):
        print(f"| {' | '.join(cells)} |")
    for name, found in {} if args.row else places.items():
        print(f"\n## {name}: {len(found)}\n")
        print("\n".join(f"- {place}" + (f" (x{n})" if n > 1 else "") for place, n in Counter(found).items()))


if __name__ == "__main__":
    main()
