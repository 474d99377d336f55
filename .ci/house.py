"""Prints figures of the package's layout, and fails where one is beyond its limit.

python .ci/house.py [-v]          -v lists what each figure counts

Imports are read from the source: those in functions and under TYPE_CHECKING count as well. The floors themselves are
a contract of import-linter in pyproject.toml.
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "pytest_llem"


@dataclass(frozen=True)
class Module:
    """A module of the package, parsed."""

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def imported(self, known: frozenset[str], within: ast.AST | None = None) -> Iterator[str]:
        """The modules of the package that it imports, anywhere in the file or `within` a node."""
        for node in ast.walk(within or self.tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in known else node.module for name in inner]
            else:
                continue
            yield from (name for name in names if name in known)

    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))


def read_modules() -> dict[str, Module]:
    """Every module of the package by its dotted name."""
    modules = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = Module(name, path, path.read_text(encoding="utf-8"))
    return modules


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or not (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(imports[module]):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(imports):
        if module not in index:
            visit(module)
    return found


def fields_of(node: ast.ClassDef) -> frozenset[str]:
    """The annotated names of a class body, without constants and class variables."""
    return frozenset(
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and "ClassVar" not in ast.dump(item)
    )


def twins(modules: dict[str, Module]) -> list[str]:
    """Pairs of a pydantic model and a dataclass that share 60 % of the fields of the smaller one, three at least."""
    models, records = [], []
    for module in modules.values():
        for node in module.classes():
            fields = fields_of(node)
            if len(fields) < 3:
                continue
            decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            kind = records if "dataclass" in decorators or "NamedTuple" in bases else models if bases else None
            if kind is not None:
                kind.append((f"{module.name}.{node.name}", fields))
    return [
        f"{model} ~ {record}"
        for (model, ours), (record, theirs) in itertools.product(models, records)
        if len(ours & theirs) >= max(3, 0.6 * min(len(ours), len(theirs)))
    ]


def main() -> int:
    """Print the table; 1 when a figure is beyond its limit."""
    modules = read_modules()
    known = frozenset(modules)
    imports = {name: set(module.imported(known)) - {name} for name, module in modules.items()}
    importers: dict[str, set[str]] = defaultdict(set)
    for name, targets in imports.items():
        for target in targets:
            importers[target].add(name)
    local = sorted(
        {
            f"{module.name}:{node.lineno} imports {target}"
            for module in modules.values()
            for function in ast.walk(module.tree)
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
            for node in ast.walk(function)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for target in module.imported(known, node)
        }
    )
    homes: dict[str, list[str]] = defaultdict(list)
    for module in modules.values():
        for node in module.classes():
            homes[node.name].append(module.name)
    exceptions = [
        line for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines() if "ignore_imports" in line
    ]
    figures: list[tuple[str, list[str], int]] = [
        ("import circles", [" ".join(group) for group in circles(imports)], 0),
        ("exceptions from the floors", exceptions, 0),
        ("imports of own modules inside functions", local, 60),
        ("modules with one importer", [n for n in modules if len(importers[n]) == 1], 45),
        (
            "loose modules at the top",
            [n for n in modules if n.count(".") == 1 and (ROOT / PACKAGE / f"{n.split('.')[1]}.py").exists()],
            7,
        ),
        ("class names used twice", [f"{n}: {' '.join(h)}" for n, h in sorted(homes.items()) if len(h) > 1], 0),
        ("models that are records as well", twins(modules), 0),
        ("files that name sglang", [m.name for m in modules.values() if "sglang" in m.text.lower()], 3),
        (
            "writers of job.json",
            [
                m.name
                for m in modules.values()
                for n in ast.walk(m.tree)
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "write_job"
            ],
            1,
        ),
        ("files", list(modules), 250),
    ]
    rows = [(what, len(listed), limit) for what, listed, limit in figures]
    rows.append(("lines", sum(len(module.text.splitlines()) for module in modules.values()), 36_000))
    for what, figure, limit in rows:
        print(f"{'    ' if figure <= limit else 'over'} {figure:>7,} of {limit:>6,}  {what}")
    if "-v" in sys.argv[1:]:
        for what, listed, limit in figures:
            if listed and what != "files":
                print(f"\n{what} ({len(listed)}, at most {limit})", *sorted(listed), sep="\n  ")
    return int(any(figure > limit for _, figure, limit in rows))


if __name__ == "__main__":
    sys.exit(main())
