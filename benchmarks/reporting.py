"""Writes what a benchmark found: a page of tables in Markdown and a plot."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timing

Row = Mapping[str, Any]


class Report:
    """A page about one question.

    Args:
        name: of the files.
        question: the heading of the page.
    """

    def __init__(self, name: str, question: str) -> None:
        self._name = name
        self._parts = [f"# {question}", timing.machine()]
        self._targets: list[Row] = []

    def note(self, text: str) -> None:
        """Adds a paragraph."""
        self._parts.append(text)

    def table(self, title: str, rows: Sequence[Row]) -> None:
        """Adds a table; the columns are the keys of all rows. It is printed as well."""
        text = f"## {title}\n\n{format_table(rows)}"
        print(text, flush=True)
        self._parts.append(text)

    def target(self, what: str, measured: float, at_most: float) -> None:
        """Adds a measured number and what it should be at most."""
        verdict = "yes" if measured <= at_most else "no"
        row = {"what": what, "measured": measured, "at most": at_most, "reached": verdict}
        self._targets.append(row)

    def write(self, output: pathlib.Path, draw: Callable[[Any], None]) -> None:
        """Writes the page and the plot.

        Args:
            output: the folder.
            draw: fills a matplotlib figure; not called where matplotlib is missing.
        """
        if self._targets:
            self.table("Targets", self._targets)
        output.mkdir(parents=True, exist_ok=True)
        if timing.has_package("matplotlib"):
            self._plot(output / f"{self._name}.png", draw)
            self._parts.append(f"![plot]({self._name}.png)")
        (output / f"{self._name}.md").write_text("\n\n".join(self._parts) + "\n")

    def _plot(self, path: pathlib.Path, draw: Callable[[Any], None]) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import figure

        canvas = figure.Figure(figsize=(9, 4.5), layout="constrained")
        draw(canvas)
        canvas.savefig(path, dpi=110)


def format_table(rows: Sequence[Row]) -> str:
    """Returns rows as a table in Markdown, its columns aligned."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = [_line(line, widths) for line in cells]
    return "\n".join([lines[0], _line(["-" * width for width in widths], widths), *lines[1:]])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"| {' | '.join(c.ljust(width) for c, width in zip(cells, widths, strict=True))} |"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def bars(axes: Any, groups: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> None:
    """Draws a bar for each series beside one another in each group."""
    width = 0.8 / len(series)
    for number, (label, heights) in enumerate(series.items()):
        places = [index - 0.4 + (number + 0.5) * width for index in range(len(groups))]
        axes.bar(places, [height or 0.0 for height in heights], width, label=label)
    axes.set_xticks(range(len(groups)), groups)
    axes.legend()
