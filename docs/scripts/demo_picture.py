"""Draw docs/_static/demo.svg: `xai-tasks demo` in a terminal, each line
at the time at which it came.

python docs/scripts/demo_picture.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from xml.sax.saxutils import escape

PICTURE = Path(__file__).parent.parent / "_static" / "demo.svg"
COMMAND = "xai-tasks demo"

PAUSE = 4.0
"""Seconds for which the last line stays before the picture starts again."""
FONT, WIDTH, LINE, PAD = 14, 8.43, 22, 18
"""Pixels: the font's size, the width of a character, the height of a line, the margin."""
BAR = re.compile(r"^(.* s  )([#.]+)(  .*)$")

STYLE = """
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre; fill: #e6edf3 }
.window { fill: #0d1117; stroke: #30363d }
.prompt { fill: #7ee787 }
.done { fill: #3fb950 } .left { fill: #30363d }
.failed { fill: #ff7b72 }
"""

Line = tuple[float, str]
"""The second at which a line came, and its text."""


def run() -> list[Line]:
    """Run the demo and return its lines."""
    began = time.monotonic()
    command = [sys.executable, "-m", "xai_tasks", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        return [(time.monotonic() - began, line.rstrip()) for line in process.stdout]


def picture(lines: list[Line]) -> str:
    """Return the picture of a run."""
    columns = max(len(line) for _, line in lines)
    width, height = round(columns * WIDTH + 2 * PAD), (len(lines) + 1) * LINE + 2 * PAD
    box = f'viewBox="0 0 {width} {height}" width="{width}"'
    total = lines[-1][0] + PAUSE
    keyframes, rows = [], [_row(0, f'<tspan class="prompt">$</tspan> {COMMAND}')]
    for number, (second, text) in enumerate(lines, 1):
        percent = 100 * second / total
        keyframes.append(
            f"@keyframes l{number} {{ 0%, {percent:.2f}% {{ opacity: 0 }} "
            f"{percent + 0.01:.2f}%, 100% {{ opacity: 1 }} }}\n"
            f".l{number} {{ animation: l{number} {total:.1f}s infinite }}"
        )
        rows.append(f'<g class="l{number}">{_line(number, text)}</g>')
    summary = escape(next(text for _, text in lines if " completed, " in text))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">',
            f"<title>{COMMAND}: {summary}</title>",
            f"<style>{STYLE}@media (prefers-reduced-motion: no-preference) {{",
            *keyframes,
            "}</style>",
            (
                f'<rect class="window" x=".5" y=".5" '
                f'width="{width - 1}" height="{height - 1}" rx="8"/>'
            ),
            *rows,
            "</svg>\n",
        ]
    )


def _row(number: int, content: str) -> str:
    y = PAD + number * LINE + FONT
    return f'<text x="{PAD}" y="{y}">{content}</text>'


def _line(number: int, text: str) -> str:
    match = BAR.match(text)
    if match is None:
        return _row(
            number, re.sub(r"(\d+ failed)", r'<tspan class="failed">\1</tspan>', escape(text))
        )
    before, bar, after = match.groups()
    x, y = PAD + len(before) * WIDTH, PAD + number * LINE + 3
    full, done = len(bar) * WIDTH, bar.count("#") * WIDTH
    return (
        _row(number, escape(before))
        + f'<rect class="left" x="{x:.1f}" y="{y}" width="{full:.1f}" height="13" rx="3"/>'
        + f'<rect class="done" x="{x:.1f}" y="{y}" width="{done:.1f}" height="13" rx="3"/>'
        + f'<text x="{x + full:.1f}" y="{y + FONT - 3}">{escape(after)}</text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(run()), encoding="utf-8")
