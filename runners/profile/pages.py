"""A profile as files: JSON, Markdown, and its plots."""

from __future__ import annotations

from pathlib import Path

from runners.comparison.pages import markdown_rows, slug
from runners.files import write_json, write_text
from runners.profile.plots import TITLES, plots
from runners.profile.report import Report
from runners.profile.tables import tables


def write_report(report: Report, folder: Path) -> Path:
    """Write profile.json, profile.md and the plots. Gives the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "profile.json", report.as_dict())
    drawn = plots(report)
    for title in TITLES:  # of an earlier profile here
        (folder / f"{slug(title)}.svg").unlink(missing_ok=True)
    for title, text in drawn.items():
        write_text(folder / f"{slug(title)}.svg", text)
    page = folder / "profile.md"
    write_text(page, markdown(report, tuple(drawn)))
    return page


def markdown(report: Report, titles: tuple[str, ...]) -> str:
    """The report as Markdown, with links to its plots."""
    lines = ["# Profile"]
    for table in tables(report):
        lines += ["", f"## {table.title}", "", *markdown_rows(table), "", table.note]
    for title in titles:
        lines += ["", f"## {title}", "", f"![{title}]({slug(title)}.svg)"]
    lines += ["", "## How it was made", "", "```", report.command, "```", ""]
    lines += [f"- {name}: {value}" for name, value in report.machine.items()]
    return "\n".join(lines) + "\n"
