"""What people see while a command works: a spinner or a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

#: Update of a bar: (done, total, what is expected).
Advance = Callable[[int, int, str], None]


class Terminal:
    """Progress and messages, on standard error so that standard output holds results only."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Write one line that stays."""
        self._console.print(escape(text))

    def result(self, text: str) -> None:
        """Write one line to standard output: what the command was run for."""
        Console(highlight=False, soft_wrap=True).print(escape(text))

    def warn(self, text: str) -> None:
        """Write one line that needs attention."""
        self._console.print(f"[yellow]{escape(text)}[/]")

    @contextlib.contextmanager
    def part(self, name: str, doing: str) -> Iterator[Callable[[str], None]]:
        """Show that `name` is being worked on, then how long it took; the yielded function changes `doing`."""
        started = time.monotonic()
        columns = (SpinnerColumn(), TextColumn("{task.fields[label]:<10}{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task(escape(doing), total=None, label=name)
            yield lambda text: bar.update(task, description=escape(text))
        self._console.print(f"  {escape(name):<10}[green]ready[/] in {time.monotonic() - started:.1f} s")

    @contextlib.contextmanager
    def steps(self, name: str) -> Iterator[Advance]:
        """Show a bar of denoising steps; before the first step it is a pulse."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[expected]}"),
        )
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task(escape(name), total=None, expected="")
            yield lambda done, total, expected: bar.update(
                task, completed=done, total=total or None, expected=escape(expected)
            )
