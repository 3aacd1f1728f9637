"""What `bench govern` found, as tables for people and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from service.bench_chart import Bars, bar_chart

Row = Mapping[str, Any]
SERIES = (("kernel", "#9ca3af"), ("rules", "#1d4ed8"), ("predictive", "#b45309"))
NAMES = {"kernel": "kernel", "rules": "fixed rules", "predictive": "predictive", "unqualified": "... unqualified"}


def show(report: Row) -> None:
    """Print the tables."""
    where = report["machine"]
    print(f"{where['processor']}, {where['cores']} cores: step times and accuracies measured here")
    print("Boards are simulated: heat, clock, power and battery are modelled, and a board's steps take longer by")
    print(f"{', '.join(f'{name} {factor:g}x' for name, factor in report['slowdown'].items())} (assumed).")
    title = (
        f"\n{report['model']}, {report['train_samples']} + {report['held_out_samples']} samples of {report['size']} px"
    )
    print(f"{title}, batch {report['batch']}, {report['epochs']} epochs, seeds {report['seeds']}")
    print(f"  {'frozen':<8}{'steps s':>9}{'judging s':>11}{'frozen part s':>15}   an epoch, here; the part's once kept")
    for cost in report["costs"]:
        frozen = "head" if cost["depth_percent"] == 100 else f"{cost['depth_percent']} %"  # noqa: PLR2004 - percent
        print(f"  {frozen:<8}{cost['steps_s']:>9.2f}{cost['judging_s']:>11.2f}{cost['prefix_s']:>15.2f}")
    for plan in report["plans"]:
        _show_plan(plan)


def _show_plan(plan: Row) -> None:
    print(f"\nPlanned depth {plan['plan_percent']} %: {100 * plan['planned_accuracy']:.2f} % held out as planned;")
    print(f"equal accuracy: {100 * plan['equal_accuracy']:.2f} %, half a point less")
    print(
        f"  {'board':<17}{'air':>4}  {'governor':<16}{'J to equal':>10}{'s':>6}{'J a job':>9}{'s':>6}{'acc. %':>8}"
        f"{'s > 30 K':>10}{'> trip':>8}{'clock/min':>11}{'samples/charge':>16}"
    )
    for row in plan["rows"]:
        print(_line(row))
    print("\n  Prediction against the better of the other two; samples a charge against the kernel alone")
    for row in plan["compared"]:
        cell = f"{row['board']:<17}{row['ambient_celsius']:>3}°"
        print(
            f"  {cell}  J to equal {_percent(row['joules_percent'])}, s {_percent(row['seconds_percent'])}, "
            f"J a job {_percent(row['joules_a_job_percent'])}, accuracy {row['accuracy_points']:+.2f} points, "
            f"samples {row['samples_a_charge']:.2f}x"
        )
    print("\n  A deadline of three quarters of what the better of the others takes")
    for row in plan["deadline"]:
        took = row["seconds"]
        print(
            f"  {row['board']:<17}due {row['deadline_s']:.0f} s, took {took:.0f} s "
            f"({100 * (took / row['others_s'] - 1):+.0f} %), above 30 K {row['above_delta_s']:.0f} s"
        )
    print("\n  Without a part of the prediction: means over all boards and air")
    for row in plan["ablation"]:
        print(
            f"  {row['without']:<7}J to equal {_percent(row['joules_to_equal_percent'])}, "
            f"J a job {row['joules_a_job_percent']:+.1f} %, s a job {row['seconds_a_job_percent']:+.1f} %, "
            f"above 30 K {row['above_delta_s']:.0f} s, at most {row['clock_changes_a_minute']:.2f} clock and "
            f"{row['fan_changes_a_minute']:.2f} fan changes a minute"
        )


def _line(row: Row) -> str:
    reached = "not" if row["joules_to_equal"] is None else f"{row['joules_to_equal']:.0f}"
    after = "" if row["seconds_to_equal"] is None else f"{row['seconds_to_equal']:.0f}"
    changes = "" if row["clock_changes_a_minute"] is None else f"{row['clock_changes_a_minute']:.2f}"
    return (
        f"  {row['board']:<17}{row['ambient_celsius']:>3}°  {NAMES[row['governor']]:<16}{reached:>10}{after:>6}"
        f"{row['joules_a_job']:>9.0f}{row['seconds_a_job']:>6.0f}{100 * row['accuracy']:>8.2f}"
        f"{row['above_delta_s']:>10.0f}{row['above_absolute_s']:>8.0f}{changes:>11}{row['charge']['samples']:>16}"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.0f} %"


def chart(report: Row) -> str:
    """The first planned depth as an SVG document: means over the air's temperatures."""
    plan = report["plans"][0]
    rows = plan["rows"]
    boards = list(dict.fromkeys(row["board"] for row in rows))
    series = [(NAMES[name], color) for name, color in SERIES]

    def panel(title: str, value: str, scale: float = 1.0) -> Bars:
        return Bars(
            title, boards, series, [[_mean(rows, board, name, value, scale) for name, _ in SERIES] for board in boards]
        )

    title = (
        f"One job, planned depth {plan['plan_percent']} %, on simulated boards in air of 10, 25 and 40 °C (modelled)"
    )
    return bar_chart(
        title,
        [
            panel("kJ to equal accuracy", "joules_to_equal", 1e-3),
            panel("minutes to equal accuracy", "seconds_to_equal", 1 / 60),
            panel("s above 30 K in 30 min", "above_delta_s"),
            panel("1000 samples a charge", "samples", 1e-3),
            panel("accuracy, %", "accuracy", 100.0),
        ],
    )


def _mean(rows: Sequence[Row], board: str, governor: str, value: str, scale: float) -> float | None:
    """Mean over the air's temperatures; `None` unless there is a value for each."""
    chosen = [row | row["charge"] for row in rows if row["board"] == board and row["governor"] == governor]
    found = [row[value] for row in chosen]
    return None if any(one is None for one in found) else scale * statistics.fmean(found)
