"""A report as files: Markdown, JSON, and a page of HTML that needs nothing but itself."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from runners.comparison.arms import file_name
from runners.comparison.plots import plots
from runners.comparison.report import Report, chosen, finding
from runners.comparison.tables import Table, tables
from runners.files import replacing, write_json, write_text
from runners.inversion import Strip, write_strip

INVERSION = "inversion_"
NO_STRIPS: Mapping[str, Strip] = MappingProxyType({})

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8886; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; background: white; border-radius: .4rem; }
figure svg, figure img { max-width: 100%; height: auto; }
pre { background: #8882; padding: .8rem; overflow-x: auto; border-radius: .4rem; }
.note { opacity: .75; font-size: .9rem; }
"""


@dataclass(frozen=True)
class Figure:
    """A picture of a report."""

    title: str
    file: str
    """Its name in the report's folder."""
    html: str
    """As it stands in a page."""
    note: str = ""


def write_report(report: Report, folder: Path, strips: Mapping[str, Strip] = NO_STRIPS) -> Path:
    """Write report.html, report.md and report.json, with pictures of what came back of images, by
    networks' labels. Gives the path of the page."""
    figures = []
    for title, svg in plots(report).items():
        figures.append(Figure(title, f"{slug(title)}.svg", svg))
        write_text(folder / figures[-1].file, svg)
    for label, strip in strips.items():
        figures.append(_strip(label, strip, folder))
    write_json(folder / "report.json", report.as_dict())
    write_text(folder / "report.md", markdown(report, figures))
    page = folder / "report.html"
    write_text(page, page_of(report, figures))
    return page


def _strip(label: str, strip: Strip, folder: Path) -> Figure:
    path = folder / f"{INVERSION}{file_name(label)}.png"
    with replacing(path) as partial:
        write_strip(strip, partial)
    shown = base64.b64encode(path.read_bytes()).decode()
    note = "Test images; below them, for " + ", ".join(strip.reconstructions)
    note += ", what came back after all layers, and ten times what it is off by."
    title = f"There and back: {label}"
    image = f'<img alt="{html.escape(title)}" src="data:image/png;base64,{shown}">'
    return Figure(title, path.name, image, note)


def slug(title: str) -> str:
    """The name of a plot's file, without its ending."""
    return title.lower().replace(" ", "_")


def findings(report: Report) -> Iterator[str]:
    """A sentence for each network, and what to mind."""
    for row in report.rows:
        yield finding(row, report)
        if row.note:
            yield f"{row.label} is {row.note}."
        for seed, why in row.failures.items():
            yield f"{row.label} with seed {seed} has no result: {why.splitlines()[0]}"
    if said := chosen(report):
        yield said
    for caution in report.cautions:
        yield f"{caution[0].upper()}{caution[1:]}."
    others = len(report.rows) - 1
    if others > 1:
        yield (
            f"With {others} comparisons, one in {round(1 / (1 - report.confidence))} intervals is "
            "expected to leave out zero by chance alone."
        )


def markdown(report: Report, figures: Sequence[Figure]) -> str:
    """The report as Markdown, with links to its plots."""
    lines = [f"# {report.name}", "", *([report.summary, ""] if report.summary else [])]
    lines += [f"- {line}" for line in findings(report)]
    for table in tables(report):
        lines += ["", f"## {table.title}", "", *markdown_rows(table), "", table.note]
    for figure in figures:
        lines += ["", f"## {figure.title}", "", f"![{figure.title}]({figure.file})"]
        lines += ["", figure.note] if figure.note else []
    lines += ["", "## How it was made", "", "```", report.command, "```", ""]
    lines += [f"- {name}: {value}" for name, value in report.machine.items()]
    return "\n".join(lines) + "\n"


def markdown_rows(table: Table) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield f"| {' | '.join(map(_cell, table.header))} |"
    yield f"| {' | '.join(['---', *['---:'] * (len(table.header) - 1)])} |"
    for row in table.rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def page_of(report: Report, figures: Sequence[Figure]) -> str:
    """The report as one page of HTML, its plots inside."""
    text = html.escape
    parts = [f"<h1>{text(report.name)}</h1>"]
    parts += [f"<p>{text(report.summary)}</p>"] if report.summary else []
    parts += ["<ul>", *(f"<li>{text(line)}</li>" for line in findings(report)), "</ul>"]
    parts += [_table(table) for table in tables(report)]
    for figure in figures:
        title = text(figure.title)
        parts.append(f"<h2>{title}</h2>\n<figure aria-label='{title}'>{figure.html}</figure>")
        parts += [f"<p class='note'>{text(figure.note)}</p>"] if figure.note else []
    parts.append(f"<h2>How it was made</h2>\n<pre>{text(report.command)}</pre>")
    rows = "".join(
        f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>"
        for name, value in report.machine.items()
    )
    parts.append(f"<table>{rows}</table>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(report.name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    text = html.escape
    header = "".join(f'<th scope="col">{text(name)}</th>' for name in table.header)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    return (
        f"<h2>{text(table.title)}</h2>\n<div class='wide'><table>\n<thead><tr>{header}</tr></thead>"
        f"\n<tbody>\n{rows}\n</tbody></table></div>\n<p class='note'>{text(table.note)}</p>"
    )
