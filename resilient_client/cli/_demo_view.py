"""What the demo shows: a live table on a terminal, the same as lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from resilient_client.cli._output import Output
    from resilient_client.client import ClientProxy

KINDS = ("succeeded", "retried", "failed", "rejected")
MEANING = {
    "succeeded": "answered at the first attempt",
    "retried": "repeated, then answered",
    "failed": "failed with the truth",
    "rejected": "refused by the open breaker",
}
_STYLES = {"succeeded": "green", "retried": "yellow", "failed": "red", "rejected": "magenta"}
_ROWS = 14  # of the live table, where the terminal has room for them
_AROUND = 14  # lines of the terminal for the table's head and the news above it


class View:
    """Prints lines; on a terminal the load's ticks are a live table instead."""

    def __init__(self, output: Output, settings: Mapping[str, tuple[Any, Any, str]]) -> None:
        self._output = output
        self._settings = settings
        self._began: float | None = None
        self._rows: deque[tuple[float, Counter[str], str]] = deque(maxlen=_ROWS)
        self._live: Any = None

    def say(self, text: str) -> None:
        """A line of news."""
        if self._began is not None:
            text = f"{time.monotonic() - self._began:5.1f} s  {text}"
        if self._live is not None:  # above the table, where it stays
            self._live.console.print(text, markup=False, highlight=False)
        elif self._output.as_json:
            self._output.value({"news": text})
        else:
            print(text, flush=True)

    def settings(self, explained: str, urls: list[str], options: Mapping[str, Any]) -> None:
        """What differs from the defaults, and what the pipeline comes to."""
        if self._output.as_json:
            changed = {name: {"is": i, "default": d} for name, (i, d, _) in self._settings.items()}
            self._output.value({"endpoints": urls, "settings": changed, "options": sorted(options)})
            return
        print("Settings that differ from the defaults:")
        for name, (value, default, why) in self._settings.items():
            print(f"  {name} = {value} instead of {default}: {why}")
        if options:
            print(f"Options of the transport: {', '.join(sorted(options))}")
        print(explained, flush=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        try:
            from rich.console import Console
            from rich.live import Live
        except ModuleNotFoundError:
            return self
        console = Console()
        shows = console.is_terminal and not console.is_dumb_terminal
        if shows and not self._output.as_json:
            self._rows = deque(maxlen=max(1, min(_ROWS, console.height - _AROUND)))
            self._live = Live(self._table(), console=console, refresh_per_second=8)
            self._live.start()
        elif not self._output.as_json:
            print("  time  " + "  ".join(f"{kind:>9}" for kind in KINDS) + "  circuits")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._began = None

    def tick(self, counts: Counter[str], client: ClientProxy) -> None:
        """What became of the calls that ended since the last tick."""
        at = 0.0 if self._began is None else time.monotonic() - self._began
        circuits = ", ".join(
            f"{url.rpartition(':')[2]} {breaker.current_state}"
            for url, breaker in client.circuit_breakers.items()
        )
        if self._live is not None:
            self._rows.append((at, counts, circuits))
            self._live.update(self._table())
        elif self._output.as_json:
            self._output.value({"time": round(at, 2), **{k: counts[k] for k in KINDS}})
        elif self._began is not None:
            numbers = "  ".join(f"{counts[kind]:>9}" for kind in KINDS)
            print(f"{at:5.1f} s  {numbers}  {circuits}", flush=True)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(title="calls per tick", pad_edge=False, collapse_padding=True)
        table.add_column("time", justify="right", no_wrap=True)
        for kind in KINDS:
            table.add_column(kind, justify="right", style=_STYLES[kind], no_wrap=True)
        table.add_column("circuits", no_wrap=True)
        for at, counts, circuits in self._rows:
            numbers = [str(counts[kind] or "") for kind in KINDS]
            table.add_row(f"{at:.1f} s", *numbers, circuits)
        return table

    def trace(self, trace_id: str, lines: list[str]) -> None:
        """One call over both processes."""
        if self._output.as_json:
            self._output.value({"trace": trace_id, "tree": lines})
            return
        print(f"\nThe trace of one call, {trace_id}:")
        for line in lines:
            print(f"  {line}")

    def summary(self, started: int, total: Counter[str], errors: Counter[str]) -> None:
        """The sums, which add up."""
        counted = sum(total.values())
        if self._output.as_json:
            kinds = {kind: total[kind] for kind in KINDS}  # those too that there were none of
            self._output.value(
                {"started": started, "counted": counted, **kinds, "errors": dict(errors)}
            )
            return
        print(f"\n{started} calls were started:")
        for kind in KINDS:
            print(f"  {total[kind]:>6} {kind:<9} {MEANING[kind]}")
        print(f"  {counted:>6} in all" + ("" if counted == started else f", not {started}!"))
        if errors:
            print("The failures and refusals, by what they said:")
            for name, number in errors.most_common():
                print(f"  {number:>6} {name}")
