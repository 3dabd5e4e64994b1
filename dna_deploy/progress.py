"""What a person sees while work goes on: lines and progress bars with time left, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from dna_deploy.torchrun import RANK

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console() -> "Console":
    from rich.console import Console

    # text is shown as it is: file names have [brackets] and :colons:, which rich would take for its own; of several processes
    # the first one speaks
    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=RANK > 0)


def say(text: str) -> None:
    """One line for the person at the terminal."""
    console().print(text)


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A small table: the first column of names, the others of figures."""
    from rich import box
    from rich.table import Table

    table: Table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console().print(table)


@contextmanager
def bar(text: str, total: float) -> Iterator[Callable[[float], None]]:
    """A progress bar; call what it yields with the amount done since. Without a terminal: one line when finished."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(), refresh_per_second=4) as progress:
        task = progress.add_task(text, total=total)
        yield lambda amount: progress.update(task, advance=amount)
