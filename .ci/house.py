"""Prints figures of the package's layout, and fails where one is beyond its limit.

python .ci/house.py [-v]          -v lists what each figure counts

`nox -s lint` calls it. Everything is read from the source, so imports in functions and under TYPE_CHECKING count as
well. The floors themselves are a contract of import-linter in pyproject.toml. A figure may be made stricter; a limit
that is raised needs a reason in the commit that raises it.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "pytest_llem"
Function = (ast.FunctionDef, ast.AsyncFunctionDef)
PLAIN = {"str", "int", "float", "bool"}
SHARED = 0.6
"""Share of the smaller class's fields from which two classes count as one thing declared twice."""


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
            elif isinstance(node, ast.ImportFrom) and (node.module or node.level):
                base = self._absolute(node)
                inner = [f"{base}.{alias.name}" for alias in node.names]
                names = [name if name in known else base for name in inner]
            else:
                continue
            yield from (name for name in names if name in known)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + (self.path.name == "__init__.py")]
        return ".".join([*parts, node.module] if node.module else parts)

    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))


def read_modules() -> dict[str, Module]:
    """Every module of the package by its dotted name."""
    modules = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = Module(name, path, path.read_text(encoding="utf-8"))
    return modules


def circles(imports: dict[str, set[str]]) -> list[str]:
    """Groups of modules that import each other, directly or not (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[str] = []

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
                groups.append(" ".join(sorted(group)))

    for module in sorted(imports):
        if module not in index:
            visit(module)
    return groups


class Declarations:
    """What the package's classes declare, inherited fields included."""

    def __init__(self, modules: dict[str, Module]) -> None:
        self.classes = {f"{module.name}.{node.name}": node for module in modules.values() for node in module.classes()}
        self._by_name = {node.name: node for node in self.classes.values()}

    def ancestry(self, node: ast.ClassDef, seen: frozenset[str] = frozenset()) -> Iterator[ast.ClassDef | str]:
        """The class, its bases by the names that the package defines, and the names of foreign bases."""
        yield node
        for base in node.bases:
            name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
            if name in self._by_name and name not in seen:
                yield from self.ancestry(self._by_name[name], seen | {name})
            else:
                yield name

    def fields(self, node: ast.ClassDef, *, own: bool = False) -> dict[str, ast.expr]:
        """The annotated names of a class and its bases (not with `own`) with their types, without class variables."""
        return {
            item.target.id: item.annotation
            for owner in ([node] if own else self.ancestry(node))
            if isinstance(owner, ast.ClassDef)
            for item in owner.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            if "ClassVar" not in ast.dump(item.annotation)
        }

    def shared(self, ours: dict[str, ast.expr], theirs: dict[str, ast.expr]) -> set[str]:
        """The names that both have, but for those that one has as a plain value and the other as a class of ours.

        A result has a study's name, a test item the study itself: that is no second declaration.
        """

        def names(annotation: ast.expr) -> set[str]:
            return {part.id for part in ast.walk(annotation) if isinstance(part, ast.Name)}

        def apart(one: ast.expr, other: ast.expr) -> bool:
            return names(one) <= PLAIN and bool(names(other) & set(self._by_name))

        both = ours.keys() & theirs.keys()
        return {name for name in both if not apart(ours[name], theirs[name]) and not apart(theirs[name], ours[name])}

    def kind(self, node: ast.ClassDef) -> str | None:
        """`record`: a dataclass or named tuple of the standard library. `model`: what pydantic or typing reads."""
        own = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
        bases = {base for base in self.ancestry(node) if isinstance(base, str)}
        if "pydantic" in own or bases & {"BaseModel", "RootModel", "TypedDict"}:
            return "model"
        return "record" if "dataclass" in own or "NamedTuple" in bases else None

    def twins(self) -> list[str]:
        """Pairs of a model and a record that share most fields of the smaller one, three at least.

        A class that inherits all that it shares is not listed beside its base.
        """
        models = [name for name, node in self.classes.items() if self.kind(node) == "model"]
        records = [name for name, node in self.classes.items() if self.kind(node) == "record"]
        fields = {name: self.fields(self.classes[name]) for name in (*models, *records)}
        own = {name: self.fields(self.classes[name], own=True) for name in (*models, *records)}
        pairs = []
        for model, record in itertools.product(models, records):
            shared = self.shared(fields[model], fields[record])
            enough = max(3, SHARED * min(len(fields[model]), len(fields[record])))
            if len(shared) >= enough and own[model].keys() & shared and own[record].keys() & shared:
                pairs.append(f"{model} ~ {record}")
        return pairs


def local_imports(modules: dict[str, Module], known: frozenset[str]) -> list[str]:
    """Imports of own modules inside functions."""
    return sorted(
        {
            f"{module.name}:{node.lineno} imports {target}"
            for module in modules.values()
            for function in ast.walk(module.tree)
            if isinstance(function, Function)
            for node in ast.walk(function)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for target in module.imported(known, node)
        }
    )


def job_writers(modules: dict[str, Module]) -> list[str]:
    """Calls that write a job: `write_job`, or any `write...` with a job directory's `.job` among its arguments."""
    writers = []
    for module in modules.values():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call) or module.name == f"{PACKAGE}.job.job":
                continue
            called = ast.unparse(node.func).rpartition(".")[2]
            paths = [argument for argument in node.args if isinstance(argument, ast.Attribute)]
            if called == "write_job" or (called.startswith("write") and any(path.attr == "job" for path in paths)):
                writers.append(f"{module.name}:{node.lineno}")
    return writers


def is_number(node: ast.AST | None) -> bool:
    """Whether an expression is a number, or a calculation with numbers alone."""
    if isinstance(node, ast.BinOp):
        return is_number(node.left) and is_number(node.right)
    if isinstance(node, ast.UnaryOp):
        return is_number(node.operand)
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def unexplained_numbers(module: Module) -> Iterator[str]:
    """Numeric constants of the module with neither a comment (above or beside) nor a docstring below."""
    lines = module.text.splitlines()
    body = module.tree.body
    for position, node in enumerate(body):
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not is_number(node.value):
            continue
        below = body[position + 1] if position + 1 < len(body) else None
        explained = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        above = lines[node.lineno - 2].startswith("#") if node.lineno > 1 else False
        beside = "#" in lines[(node.end_lineno or node.lineno) - 1]
        if not (explained or above or beside):
            yield f"{module.name}:{node.lineno} {lines[node.lineno - 1]}"


def is_terse(module: Module) -> bool:
    """Whether the module's docstring has fewer than two sentences; an `__init__` that holds nothing else may."""
    text = ast.get_docstring(module.tree) or ""
    empty = module.path.name == "__init__.py" and len(module.tree.body) == 1
    return len(re.findall(r"[.!?](?=\s|$)", text)) < (1 if empty else 2)


def figures(modules: dict[str, Module]) -> list[tuple[str, list[str], int]]:
    """What is counted, each with its limit."""
    known = frozenset(modules)
    imports = {name: set(module.imported(known)) - {name} for name, module in modules.items()}
    importers: dict[str, set[str]] = defaultdict(set)
    for name, targets in imports.items():
        for target in targets:
            importers[target].add(name)
    homes: dict[str, list[str]] = defaultdict(list)
    for module in modules.values():
        for node in module.classes():
            homes[node.name].append(module.name)
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    escapes = ("ignore_imports", "exclude_type_checking_imports")
    loose = [path.stem for path in (ROOT / PACKAGE).glob("*.py") if path.stem != "__init__"]
    return [
        ("import circles", circles(imports), 0),
        ("exceptions from the floors", [line for line in settings if line.startswith(escapes)], 0),
        ("imports of own modules inside functions", local_imports(modules, known), 66),
        ("modules with one importer", [name for name in modules if len(importers[name]) == 1], 118),
        ("loose modules at the top", loose, 7),
        ("class names used twice", [f"{n}: {' '.join(h)}" for n, h in sorted(homes.items()) if len(h) > 1], 0),
        ("models that are records as well", Declarations(modules).twins(), 0),
        ("files that name sglang", [m.name for m in modules.values() if "sglang" in m.text.lower()], 3),
        ("writers of job.json", job_writers(modules), 1),
        ("numeric constants without a source", [n for m in modules.values() for n in unexplained_numbers(m)], 0),
        ("docstrings of modules below two sentences", [m.name for m in modules.values() if is_terse(m)], 0),
    ]


def main() -> int:
    """Print the table; 1 when a figure is beyond its limit."""
    modules = read_modules()
    listed = figures(modules)
    rows = [(what, len(found), limit) for what, found, limit in listed]
    rows.append(("files", len(modules), 485))
    rows.append(("lines", sum(len(module.text.splitlines()) for module in modules.values()), 81_000))
    for what, figure, limit in rows:
        print(f"{'    ' if figure <= limit else 'over'} {figure:>7,} of {limit:>6,}  {what}")
    if "-v" in sys.argv[1:]:
        for what, found, limit in listed:
            if found:
                print(f"\n{what} ({len(found)}, at most {limit})", *sorted(found), sep="\n  ")
    return int(any(figure > limit for _, figure, limit in rows))


if __name__ == "__main__":
    sys.exit(main())
