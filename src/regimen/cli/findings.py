"""What `regimen inspect`, `doctor` and `plan` show alike: findings, text from the data, sizes of memory.

In: `Finding`s and a console. Out: a table: severity, code, example, fix.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich import markup
from rich.console import Console
from rich.table import Table

from regimen.diagnosis.findings import Finding
from regimen.diagnosis.memory import GIGABYTE

COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def print_findings(findings: list[Finding], console: Console) -> None:
    """Each problem with its place and its fix."""
    console.print("[bold]problems[/bold]" + ("" if findings else ": none found"))
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True, width=8)
    table.add_column(overflow="fold")
    for found in findings:
        colour = COLOURS[found.severity]
        lines = [f"{found.code}: {found.message}", f"fix: {found.fix}"]
        if found.example is not None:
            lines.insert(1, f"example: {found.example}")
        table.add_row(f"[{colour}]{found.severity}[/{colour}]", escape("\n".join(lines)))
    if findings:
        console.print(table)


def sizes_text(sizes: Mapping[str, int]) -> str:
    """Bytes by what they are for, in GB; nothing of what takes none."""
    return ", ".join(f"{name.replace('_', ' ')} {size / GIGABYTE:.2f}" for name, size in sizes.items() if size)


def escape(text: str) -> str:
    """Text from the data, safe for the screen: no markup, and lone surrogates written out."""
    return markup.escape(text.encode(errors="backslashreplace").decode())
