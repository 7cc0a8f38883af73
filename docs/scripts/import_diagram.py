"""Draw which module imports which, from the imports as they stand, into docs/_static/imports.svg.

python docs/scripts/import_diagram.py

A package is one box, which lists its modules. An import that others imply is left out: if a imports
b and c, and b imports c, then a -> c is not drawn. Every arrow points down, because import-linter
allows no import upwards.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

DOCS = Path(__file__).parent.parent
PACKAGE = DOCS.parent / "xai_tasks"
PICTURE = DOCS / "_static" / "imports.svg"

FACADE = PACKAGE.name
"""The box of `__init__.py`."""

BOX, BEND, GAP = (250, 58), 10, 14
"""In pixels: the size of a box, the width of an arrow that passes a row, and the space between."""
ROW = 88
MARGIN = 24
STYLE = """
text { font-family: ui-monospace, "DejaVu Sans Mono", monospace; text-anchor: middle;
  fill: #1f2328 }
.name { font-size: 14px; font-weight: 600 }
.holds { font-family: system-ui, "DejaVu Sans", sans-serif; font-size: 11px; fill: #59636e }
rect { fill: #f6f8fa; stroke: #818b98 }
.page { fill: #ffffff; stroke: none }
.public { fill: #ddf4ff; stroke: #0969da }
path { fill: none; stroke: #59636e; stroke-width: 1.2 }
"""

HEAD = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M1,1 L7,4 L1,7"/></marker></defs>'
)

Graph = dict[str, set[str]]


def modules() -> dict[str, list[Path]]:
    """Return the files of each box."""
    boxes: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        boxes.setdefault(FACADE if first == "__init__" else first, []).append(path)
    return boxes


def imports(boxes: dict[str, list[Path]]) -> Graph:
    """Return what each box imports of the others at run time."""
    graph: Graph = {}
    for box, paths in boxes.items():
        trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
        found = {name for tree in trees for name in _imported(tree)}
        graph[box] = {name for name in found if name in boxes and name != box}
    return graph


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        first, _, rest = node.module.partition(".")
        if first == FACADE:
            yield rest.partition(".")[0] or FACADE
    for child in ast.iter_child_nodes(node):
        yield from _imported(child)


def reduced(graph: Graph) -> Graph:
    """Return the graph without the imports that others imply."""
    below: Graph = {}

    def reachable(box: str) -> set[str]:
        if box not in below:
            below[box] = graph[box].union(*map(reachable, graph[box]))
        return below[box]

    return {
        box: {
            name for name in names if not any(name in reachable(other) for other in names - {name})
        }
        for box, names in graph.items()
    }


def rows(graph: Graph) -> list[list[str]]:
    """Return the rows of boxes from the top; each box is as low as its imports allow."""
    height: dict[str, int] = {}

    def measure(box: str) -> int:
        if box not in height:
            height[box] = 1 + max(map(measure, graph[box]), default=-1)
        return height[box]

    top = max(map(measure, graph))
    return [sorted(box for box in graph if height[box] == top - row) for row in range(top + 1)]


class Layout:
    """The positions of the boxes, and the bends of arrows that pass rows."""

    def __init__(self, graph: Graph) -> None:
        self.rows: list[list[str]] = rows(graph)
        row_of = {box: row for row, boxes in enumerate(self.rows) for box in boxes}
        self.arrows: list[list[str]] = []
        self.links: Graph = {box: set() for box in graph}
        for box in sorted(graph):
            for name in sorted(graph[box]):
                bends = [f"{box} > {name} {row}" for row in range(row_of[box] + 1, row_of[name])]
                for row, bend in enumerate(bends, row_of[box] + 1):
                    self.rows[row].append(bend)
                self.arrows.append([box, *bends, name])
                for above, under in pairwise(self.arrows[-1]):
                    self.links.setdefault(above, set()).add(under)
                    self.links.setdefault(under, set()).add(above)
        self.x: dict[str, float] = {}
        for row in self.rows:
            self._centre(row)
        for turn in range(40):
            for row in self.rows if turn % 2 else reversed(self.rows):
                row.sort(key=lambda name: (round(self._pull(name), 3), name))
                self._centre(row)
        left = min(self.x[name] - self.width(name) / 2 for name in self.x)
        self.x = {name: round(x - left + MARGIN, 1) for name, x in self.x.items()}

    @staticmethod
    def width(name: str) -> int:
        """Return the width of a box or a bend in its row."""
        return BEND if " > " in name else BOX[0]

    def _pull(self, name: str) -> float:
        linked = [self.x[other] for other in self.links.get(name, ())]
        return sum(linked) / len(linked) if linked else self.x[name]

    def _centre(self, row: list[str]) -> None:
        """Centre a row, in its order."""
        left = -sum(self.width(name) + GAP for name in row) / 2
        for name in row:
            self.x[name] = left + (self.width(name) + GAP) / 2
            left += self.width(name) + GAP


def picture() -> str:
    """Return the diagram as SVG."""
    boxes = modules()
    layout = Layout(reduced(imports(boxes)))
    y = {name: MARGIN + row * ROW for row, names in enumerate(layout.rows) for name in names}
    width = round(max(layout.x[name] + layout.width(name) / 2 for name in layout.x)) + MARGIN
    height = len(layout.rows) * ROW - ROW + BOX[1] + 2 * MARGIN
    view = f'viewBox="0 0 {width} {height}" width="{width}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {view} role="img">',
        f"<title>The imports of {FACADE}</title>",
        f"<style>{STYLE}</style>",
        HEAD,
        f'<rect class="page" width="{width}" height="{height}"/>',
        *(_arrow([(layout.x[name], y[name]) for name in names]) for names in layout.arrows),
        *(_box(name, boxes[name], layout.x[name], y[name]) for name in sorted(boxes)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _arrow(points: list[tuple[float, float]]) -> str:
    path = [f"M{points[0][0]:g},{points[0][1] + BOX[1]:g}"]
    for (x1, y1), (x2, y2) in pairwise(points):
        start, end = y1 + BOX[1], y2
        middle = (start + end) / 2
        path.append(f"C{x1:g},{middle:g} {x2:g},{middle:g} {x2:g},{end:g}")
        if (x2, y2) != points[-1]:
            path.append(f"V{y2 + BOX[1]:g}")
    return f'<path d="{" ".join(path)}" marker-end="url(#head)"/>'


def _box(name: str, paths: list[Path], x: float, y: float) -> str:
    kind = "" if name.startswith("_") else ' class="public"'
    modules = textwrap.wrap(_modules(paths), 40)
    top = y + BOX[1] / 2 + 5 - 7 * len(modules)
    lines = [
        f'<rect{kind} x="{x - BOX[0] / 2:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="6"/>',
        f'<text class="name" x="{x:g}" y="{top:g}">{name}</text>',
    ]
    for number, line in enumerate(modules):
        lines.append(f'<text class="holds" x="{x:g}" y="{top + 16 + 14 * number:g}">{line}</text>')
    return "\n".join(lines)


def _modules(paths: list[Path]) -> str:
    """Return the names of a package's modules, without those that are private even within it."""
    return ", ".join(path.stem for path in paths[1:] if not path.stem.startswith("_"))


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
