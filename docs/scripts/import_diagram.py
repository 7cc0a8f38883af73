"""Draw which module imports which, from the imports as they stand, into docs/_static/imports.svg.

python docs/scripts/import_diagram.py

A subpackage is one box. An import that others imply is left out: where a imports b and c, and b imports c, a -> c isn't
drawn. Every arrow points down; that it can is what import-linter holds.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

DOCS = Path(__file__).parent.parent
PACKAGE = DOCS.parent / "xai_tasks"
PICTURE = DOCS / "_static" / "imports.svg"

FACADE = PACKAGE.name
"""The box of `__init__.py`."""

BOX, LANE, GAP = (178, 78), 10, 14
"""In pixels: width and height of a box, width of an arrow that passes by a row, and what lies between."""
ROW = 112
MARGIN = 24
STYLE = """
text { font-family: ui-monospace, "DejaVu Sans Mono", monospace; text-anchor: middle; fill: #1f2328 }
.name { font-size: 14px; font-weight: 600 }
.says { font-family: system-ui, "DejaVu Sans", sans-serif; font-size: 11px; fill: #59636e }
rect { fill: #f6f8fa; stroke: #818b98 }
.page { fill: #ffffff; stroke: none }
.public { fill: #ddf4ff; stroke: #0969da }
path { fill: none; stroke: #59636e; stroke-width: 1.2 }
"""

HEAD = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M1,1 L7,4 L1,7"/></marker></defs>'
)

Graph = dict[str, set[str]]


def modules() -> dict[str, list[Path]]:
    """Give the files of each box."""
    boxes: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        boxes.setdefault(FACADE if first == "__init__" else first, []).append(path)
    return boxes


def imports(boxes: dict[str, list[Path]]) -> Graph:
    """Give what each box imports of the others at run time."""
    graph: Graph = {}
    for box, paths in boxes.items():
        found = {
            name
            for path in paths
            for name in _imported(ast.parse(path.read_text(encoding="utf-8")))
        }
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
    """Leave out what is implied."""
    below: Graph = {}

    def reach(box: str) -> set[str]:
        if box not in below:
            below[box] = graph[box].union(*map(reach, graph[box]))
        return below[box]

    return {
        box: {name for name in names if not any(name in reach(other) for other in names - {name})}
        for box, names in graph.items()
    }


def rows(graph: Graph) -> list[list[str]]:
    """Lay the boxes into rows, each as low as its imports allow; the lowest last."""
    height: dict[str, int] = {}

    def measure(box: str) -> int:
        if box not in height:
            height[box] = 1 + max(map(measure, graph[box]), default=-1)
        return height[box]

    top = max(map(measure, graph))
    return [sorted(box for box in graph if height[box] == top - row) for row in range(top + 1)]


class Layout:
    """Where boxes lie, and the bends of arrows that pass by rows."""

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
            self._place(row)
        for turn in range(40):
            for row in self.rows if turn % 2 else reversed(self.rows):
                row.sort(key=lambda name: (round(self._pull(name), 3), name))
                self._place(row)
        left = min(self.x[name] - self.width(name) / 2 for name in self.x)
        self.x = {name: round(x - left + MARGIN, 1) for name, x in self.x.items()}

    @staticmethod
    def width(name: str) -> int:
        """Give the room that a box, or a bend, takes in its row."""
        return LANE if " > " in name else BOX[0]

    def _pull(self, name: str) -> float:
        linked = [self.x[other] for other in self.links.get(name, ())]
        return sum(linked) / len(linked) if linked else self.x[name]

    def _place(self, row: list[str]) -> None:
        """Set a row in the middle, in its order."""
        left = -sum(self.width(name) + GAP for name in row) / 2
        for name in row:
            self.x[name] = left + (self.width(name) + GAP) / 2
            left += self.width(name) + GAP


def picture() -> str:
    """Give the diagram as SVG."""
    boxes = modules()
    layout = Layout(reduced(imports(boxes)))
    y = {name: MARGIN + row * ROW for row, names in enumerate(layout.rows) for name in names}
    width = round(max(layout.x[name] + layout.width(name) / 2 for name in layout.x)) + MARGIN
    height = len(layout.rows) * ROW - ROW + BOX[1] + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>The imports of {FACADE}</title>",
        f"<style>{STYLE}</style>",
        HEAD,
        f'<rect class="page" width="{width}" height="{height}"/>',
        *(_arrow([(layout.x[name], y[name]) for name in names]) for names in layout.arrows),
        *(_box(name, boxes[name][0], layout.x[name], y[name]) for name in sorted(boxes)),
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


def _box(name: str, path: Path, x: float, y: float) -> str:
    kind = "" if name.startswith("_") else ' class="public"'
    lines = [
        f'<rect{kind} x="{x - BOX[0] / 2:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="6"/>',
        f'<text class="name" x="{x:g}" y="{y + 20:g}">{name}</text>',
    ]
    for number, line in enumerate(textwrap.wrap(_summary(path), 28, max_lines=3, placeholder=" …")):
        lines.append(
            f'<text class="says" x="{x:g}" y="{y + 38 + 14 * number:g}">{escape(line)}</text>'
        )
    return "\n".join(lines)


def _summary(path: Path) -> str:
    """Give the first sentence of a module's docstring."""
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition(
        "\n\n"
    )[0]
    return first.replace("\n", " ").replace("`", "").removesuffix(".")


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
