"""What the demo's console saw: kept for the live view, the final table and the chart."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel as Box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.chart import Line, Panel, chart
from service.demo_console import Heard

STAGES = (
    "pulling",
    "verifying",
    "unsealing",
    "planning",
    "compiling",
    "training",
    "evaluating",
    "sealing",
    "promoting",
)
REFRESH = 4  # times a second
SLOW_DELTA, PAUSE_DELTA = 30.0, 35.0  # R7, drawn as marks
Point = tuple[float, float]


class Story:
    """Everything heard about one job."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.status, self.step = "sent", ""
        self.status_body: dict[str, object] = {}
        self.share = 0.0
        self.heat_at: float | None = None
        self.heat_s = 0.0
        self.daemon_bytes: int | None = None
        self.board: dict[str, object] = {}
        self.training: dict[str, object] = {}
        self.energy: dict[str, object] = {}
        self.series: dict[str, list[Point]] = {}
        self.heard: list[Heard] = []
        self._began = time.monotonic()
        self._last_status = ""
        self._console: Console | None = None
        self._live: Live | None = None

    @contextmanager
    def shown_on(self, console: Console) -> Iterator[None]:
        """Show progress while the block runs: live in a terminal, a line an event elsewhere."""
        self._console = console
        if not console.is_terminal:
            yield
            return
        with Live(self.view(), console=console, refresh_per_second=REFRESH) as live:
            self._live = live
            yield
        self._live = None

    def heated(self, seconds: float) -> None:
        """The board is heated from now on."""
        self.heat_at, self.heat_s = self._now(), seconds
        self._say("the board is heated on purpose")

    def hear_status(self, body: Mapping[str, object]) -> None:
        """A status of the job."""
        self.status_body = dict(body)
        self.status, self.step = str(body.get("status")), str(body.get("step"))
        if isinstance(share := body.get("progress"), float | int):
            self.share = float(share)
        said = " ".join(filter(None, (self.status, self.step, str(body.get("reason_code") or ""))))
        if said != self._last_status:
            self._say(said)
        self._last_status = said
        self._update()

    def hear_metrics(self, group: str, body: Mapping[str, object]) -> None:
        """A telemetry message of group `board`, `training` or `energy`."""
        values = body.get("values")
        if not isinstance(values, dict):
            return
        if group in ("board", "training", "energy"):
            setattr(self, group, values)
        names = {
            "board": ("temperature_celsius", "ambient_celsius", "delta_t_celsius", "frequency_hz", "frequency_cap_hz"),
            "training": ("loss", "score", "depth_percent"),
        }
        for name in names.get(group, ()):
            if isinstance(value := values.get(name), int | float):
                self.series.setdefault(name, []).append((self._now(), float(value)))
        if group == "training":
            self._hear_training(values)
        self._update()

    def _hear_training(self, values: Mapping[str, object]) -> None:
        done = _number(values, "epoch") + _number(values, "step") / max(1.0, _number(values, "steps"))
        self.share = max(self.share, min(1.0, done / max(1.0, _number(values, "epochs"))))
        if values.get("event") == "depth":
            self._say(f"freeze depth now {values.get('depth_percent')} % ({self.board.get('depth_rule', 'plan')})")
        elif values.get("event") == "epoch":
            loss, accuracy = _number(values, "loss"), _number(values, "score")
            self._say(f"epoch {values.get('epoch')}: loss {loss:.3f}, accuracy {accuracy:.3f}")

    # --- view --------------------------------------------------------------------------------------------------------

    def view(self) -> RenderableType:
        """The live picture."""
        at = STAGES.index(self.step) if self.step in STAGES else -1
        stages = Text(" ").join(
            Text(name, style="bold reverse" if i == at else "green" if i < at else "dim")
            for i, name in enumerate(STAGES)
        )
        rows = Table.grid(expand=True)  # a bar in a plain group would swallow the line after it
        rows.add_row(stages)
        rows.add_row(ProgressBar(total=1.0, completed=self.share))
        for line in (self._training_line(), self._board_line(), self._rule_line()):
            rows.add_row(Text(line))
        return Box(rows, title=f"{self.status} {self.step}".strip(), border_style="cyan")

    def _training_line(self) -> str:
        t, accuracy = self.training, self.series.get("score", [])
        parts = (
            f"epoch {t.get('epoch', '-')}/{t.get('epochs', '-')}",
            f"loss {_shown(t, 'loss', '.3f')}",
            f"accuracy {accuracy[-1][1]:.3f}" if accuracy else "accuracy -",
            f"{t.get('depth_percent', '-')} % frozen",
            f"{_shown(self.energy, 'joules_per_sample', '.3f')} J/sample (modelled)",
        )
        return "  ".join(parts)

    def _board_line(self) -> str:
        b = self.board
        parts = (
            f"{_shown(b, 'temperature_celsius', '.1f')} °C",
            f"delta-T {_shown(b, 'delta_t_celsius', '.1f')} K",
            f"{_shown(b, 'frequency_hz', '.2f', 1e-9)} GHz",
            f"charge {_shown(b, 'charge', '.1f', 100)} %",
            f"{_shown(b, 'power_watts', '.1f')} W (modelled)",
        )
        return "  ".join(parts)

    def _rule_line(self) -> str:
        b = self.board
        return f"{b.get('action', '-')}  rule {b.get('rule', '-')}  duty {_shown(b, 'duty', '.0f', 100)} %"

    def _update(self) -> None:
        if self._live is not None:
            self._live.update(self.view())

    def _say(self, line: str) -> None:
        if self._console is not None:
            self._console.print(f"[dim]{self._now():6.1f} s[/] {line}")

    def _now(self) -> float:
        return time.monotonic() - self._began


def table_of(story: Story, wall_s: float) -> Table:
    """The final table."""
    result = cast("dict[str, object]", story.status_body.get("result") or {})
    energy = cast("dict[str, object]", result.get("energy") or {})
    note = "modelled" if energy.get("modelled") else "measured"
    table = Table(title=f"{story.status_body.get('status')}: {story.job_id}", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    before, after = _number(result, "accuracy_before"), _number(result, "accuracy_after")
    depth = f"{result.get('depth_percent')} % by {result.get('depth_rule')}"
    joules = f"{_shown(energy, 'joules', '.1f')} J, {_shown(energy, 'joules_per_sample', '.3f')} J/sample"
    rows = (
        ("accuracy on held-out images", f"{before:.3f} → {after:.3f} ({result.get('held_out')} images)"),
        ("whole demo / training steps", f"{wall_s:.1f} s / {_number(result, 'busy_s'):.1f} s"),
        ("training speed", f"{_number(result, 'samples_per_s'):.1f} samples/s ({result.get('engine')})"),
        ("peak memory of the worker", f"{_number(result, 'peak_rss_bytes') / 2**20:.0f} MiB"),
        ("memory of the daemon", f"{(story.daemon_bytes or 0) / 2**20:.1f} MiB"),
        ("similarity to the source", _shown(result, "similarity", ".3f")),
        ("trials before planning", _trials(result)),
        ("freeze depth", f"{depth}; changed {result.get('depth_changes')} times"),
        (f"energy ({note})", f"{joules}, {_shown(energy, 'gops_per_watt', '.2f')} GOPS/W"),
        ("tuned model sha256", f"{result.get('model_sha256')}"),
        ("base (sealed) sha256", f"{result.get('base_sha256')}"),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _trials(result: Mapping[str, object]) -> str:
    """Loss of each trial that chose the depth, or a dash where the depth was chosen without."""
    trials = result.get("depth_trials")
    if not isinstance(trials, dict) or not trials:
        return "-"
    return ", ".join(f"{percent} % frozen: loss {loss:.3f}" for percent, loss in trials.items())


def chart_of(story: Story) -> str:
    """The SVG chart."""
    get = story.series.get
    loss = get("loss", [])
    top = max([1.0, *(value for _, value in loss)])
    panels = (
        Panel("delta-T (K)", [Line("die over ambient", get("delta_t_celsius", []), "#dc2626")], 0, 40,
              [(SLOW_DELTA, "slow"), (PAUSE_DELTA, "pause")]),
        Panel("temperature (°C)", [Line("die", get("temperature_celsius", []), "#ea580c"),
                                   Line("ambient", get("ambient_celsius", []), "#9ca3af")], 10, 80),
        Panel("clock (GHz)", [Line("running", _scaled(get("frequency_hz", []), 1e-9), "#2563eb", steps=True),
                              Line("cap", _scaled(get("frequency_cap_hz", []), 1e-9), "#93c5fd", steps=True)], 0, 2),
        Panel("frozen (%)", [Line("freeze depth", get("depth_percent", []), "#7c3aed", steps=True)], 0, 100),
        Panel("learning", [Line("accuracy", get("score", []), "#059669"),
                           Line(f"loss / {top:.1f}", _scaled(loss, 1 / top), "#64748b")], 0, 1),
    )  # fmt: skip
    bands = [] if story.heat_at is None else [(story.heat_at, story.heat_at + story.heat_s, "heated on purpose")]
    return chart(f"temperd job {story.job_id} (emulated board)", panels, bands)


def _scaled(points: list[Point], factor: float) -> list[Point]:
    return [(t, value * factor) for t, value in points]


def _number(table: Mapping[str, object], key: str) -> float:
    value = table.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _shown(table: Mapping[str, object], key: str, form: str, factor: float = 1.0) -> str:
    """The number, or a dash where there is none."""
    value = table.get(key)
    return format(value * factor, form) if isinstance(value, int | float) else "-"
