"""The policy: every threshold temperd obeys, read from TOML, strictly.

A key left out keeps the default below; an unknown key, an impossible value or two keys that contradict each other are
refused. docs/policy.md explains each key and each rule it feeds.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.policy_memory import MemoryPolicy
from policies.policy_predictive import PredictivePolicy
from policies.policy_schedule import SchedulePolicy
from policies.strict import TableError, build, limits

DEPTH_LADDER = (0, 25, 50, 75, 100)
"""Shares of the parametric layers that may be frozen, in percent; 100 freezes all but the head."""
MAX_POLICY_BYTES = 64 << 10  # the longest policy that ships has about 5 KB
MAX_KEY = 200  # of an unknown key so much is said
MAX_DOTS = 200  # of a line: a reader's time grows with the square of a key's parts, 64 KB of one key take a minute

_DEPTH = limits(choices=DEPTH_LADDER)
_SHARE = limits(0.0, 1.0)
_RATIO = limits(0.05, 1.0)
_DUTY = limits(0.05, 1.0)  # a duty of zero would be a pause in disguise
_KELVIN = limits(1.0, 80.0)
_CELSIUS = limits(20.0, 125.0)  # silicon is rated to 125 °C at most; below 20 °C a trip would never clear


class PolicyError(ValueError):
    """A policy cannot be used: `key` is the dotted key, `what` says what is wrong and what would fit."""

    def __init__(self, key: str, what: str) -> None:
        self.key, self.what = key, what
        super().__init__(f"{key}: {what}" if key else what)


@dataclass(frozen=True, slots=True)
class SlowStage:
    """First thermal stage: work goes on, slower and deeper frozen, with cooling on (R7: above 30 K)."""

    delta_kelvin: float = field(default=30.0, metadata=_KELVIN)
    """Entered above this die temperature over ambient (or over the resting baseline)."""
    absolute_celsius: float = field(default=70.0, metadata=_CELSIUS)
    """Entered above this die temperature, whatever the ambient."""
    frequency_ratio: float = field(default=0.8, metadata=_RATIO)
    """Highest clock as a share of the board's top clock."""
    duty: float = field(default=0.75, metadata=_DUTY)
    """Share of time spent in training steps."""
    least_depth_percent: int = field(default=50, metadata=_DEPTH)
    cooling_share: float = field(default=0.5, metadata=_SHARE)
    """Share of the highest cooling level, rounded up."""


@dataclass(frozen=True, slots=True)
class HotStage(SlowStage):
    """Second thermal stage, between slow and pause: the last attempt to go on."""

    delta_kelvin: float = field(default=33.0, metadata=_KELVIN)
    absolute_celsius: float = field(default=76.0, metadata=_CELSIUS)
    frequency_ratio: float = field(default=0.6, metadata=_RATIO)
    duty: float = field(default=0.5, metadata=_DUTY)
    least_depth_percent: int = field(default=75, metadata=_DEPTH)
    cooling_share: float = field(default=0.75, metadata=_SHARE)


@dataclass(frozen=True, slots=True)
class PauseStage:
    """Third thermal stage: training stops at a checkpoint, lowest clock, cooling at its maximum (R7: above 35 K)."""

    delta_kelvin: float = field(default=35.0, metadata=_KELVIN)
    absolute_celsius: float = field(default=80.0, metadata=_CELSIUS)


@dataclass(frozen=True, slots=True)
class ThermalPolicy:
    """Trip points of the thermal guard (R7)."""

    hysteresis_kelvin: float = field(default=3.0, metadata=limits(0.5, 20.0))
    """A stage is left only this far below the trip that entered it."""
    reverify_celsius: float = field(default=85.0, metadata=_CELSIUS)
    """Above this the memory is suspect: frozen weights are hashed again before training goes on."""
    abort_celsius: float = field(default=95.0, metadata=_CELSIUS)
    """Above this, although paused, the heat is not ours: the job ends and gives its memory back."""
    rise_lookahead_s: float = field(default=10.0, metadata=limits(0.0, 120.0))
    """Slow down when, at the present rate of rise, the pause trip is this near; 0 switches the rule off."""
    missing_pause_readings: int = field(default=5, metadata=limits(1, 60))
    """Pause after this many readings in a row without a believable temperature."""
    missing_duty: float = field(default=0.5, metadata=_DUTY)
    """Duty until then, at the lowest clock."""
    pause_without_sensor: bool = True
    """False: never pause for a missing temperature, only stay slow. For machines that have no sensor at all."""
    slow: SlowStage = field(default_factory=SlowStage)
    hot: HotStage = field(default_factory=HotStage)
    pause: PauseStage = field(default_factory=PauseStage)

    def __post_init__(self) -> None:
        """Refuse trips out of order and a hotter stage that is milder than a cooler one."""
        slow, hot, pause = self.slow, self.hot, self.pause
        _rising("delta_kelvin", slow.delta_kelvin, hot.delta_kelvin, pause.delta_kelvin)
        _rising("absolute_celsius", slow.absolute_celsius, hot.absolute_celsius, pause.absolute_celsius)
        if not pause.absolute_celsius <= self.reverify_celsius <= self.abort_celsius:
            raise TableError(
                "reverify_celsius",
                f"must lie between pause.absolute_celsius ({pause.absolute_celsius}) and abort_celsius "
                f"({self.abort_celsius}), is {self.reverify_celsius}",
            )
        for key, milder, stricter in (
            ("frequency_ratio", slow.frequency_ratio, hot.frequency_ratio),
            ("duty", slow.duty, hot.duty),
            ("least_depth_percent", hot.least_depth_percent, slow.least_depth_percent),
            ("cooling_share", hot.cooling_share, slow.cooling_share),
        ):
            if milder < stricter:
                raise TableError(f"hot.{key}", f"the hot stage is milder here than the slow stage (slow.{key})")
        if slow.delta_kelvin <= self.hysteresis_kelvin:
            raise TableError("hysteresis_kelvin", "must be below slow.delta_kelvin, or the slow stage is never left")


def _rising(key: str, slow: float, hot: float, pause: float) -> None:
    if not slow < hot < pause:
        raise TableError(f"hot.{key}", f"trips must rise: slow {slow}, hot {hot}, pause {pause}")


@dataclass(frozen=True, slots=True)
class BatteryPolicy:
    """Charge and supply (R11, R16)."""

    low_charge: float = field(default=0.20, metadata=_SHARE)
    """Below this, off mains: slower, deeper frozen; and waiting jobs are put in the order of `order`."""
    pause_charge: float = field(default=0.10, metadata=_SHARE)
    """Below this, off mains: pause."""
    hysteresis_charge: float = field(default=0.05, metadata=limits(0.01, 0.5))
    """Resume this far above the mark that was undercut."""
    order: str = field(
        default="most-frozen-first", metadata=limits(choices=("most-frozen-first", "least-frozen-first"))
    )
    """Order of waiting jobs below `low_charge`. `least-frozen-first` is R11's literal order."""
    low_frequency_ratio: float = field(default=0.72, metadata=_RATIO)
    low_least_depth_percent: int = field(default=50, metadata=_DEPTH)
    undervoltage_frequency_ratio: float = field(default=0.72, metadata=_RATIO)
    undervoltage_duty: float = field(default=0.5, metadata=_DUTY)
    throttled_duty: float = field(default=0.75, metadata=_DUTY)
    """Duty while firmware or kernel hold the clock down."""
    supply_hold_s: float = field(default=30.0, metadata=limits(0.0, 600.0))
    """Undervoltage, throttling and mains flicker: their limits stay this long after the last sign."""
    lost_frequency_ratio: float = field(default=0.85, metadata=_RATIO)
    """Clock while mains is away: R6's mode for batteries takes 18 % longer, 1 / 1.18."""

    def __post_init__(self) -> None:
        """Refuse marks out of order."""
        if self.pause_charge >= self.low_charge:
            raise TableError("pause_charge", f"must be below low_charge ({self.low_charge}), is {self.pause_charge}")
        if self.low_charge + self.hysteresis_charge > 1.0:
            raise TableError("hysteresis_charge", "low_charge plus hysteresis_charge is above a full battery")


@dataclass(frozen=True, slots=True)
class DvfsPolicy:
    """Clock tied to the freezing level (R5)."""

    frozen_over_percent: int = field(default=50, metadata=limits(0, 100))
    """Applies when more than this share of the layers is frozen."""
    frozen_frequency_ratio: float = field(default=0.72, metadata=_RATIO)
    """2.5 -> 1.8 GHz as a ratio, for boards with other tables."""


@dataclass(frozen=True, slots=True)
class FreezingPolicy:
    """Freeze depth from short trials, or from the cosine similarity of target and source features (R2)."""

    predictor: str = field(default="probe", metadata=limits(choices=("probe", "similarity")))
    """`probe`: train a little at several depths; needs images with labels, similarity decides for all else."""
    probe_gain: float = field(default=0.1, metadata=_SHARE)
    """Share of a trial's loss that the next shallower depth must take away to be worth its cost."""
    similarity_over_75: float = field(default=0.85, metadata=_SHARE)
    """Above this: 75 % frozen."""
    similarity_over_50: float = field(default=0.70, metadata=_SHARE)
    """Above this: 50 % frozen."""
    similarity_over_25: float = field(default=0.50, metadata=_SHARE)
    """Above this: 25 % frozen; at or below: nothing frozen."""
    unknown_percent: int = field(default=50, metadata=_DEPTH)
    """Depth when the base model carries no source signature."""

    def __post_init__(self) -> None:
        """Refuse thresholds out of order."""
        if not self.similarity_over_25 < self.similarity_over_50 < self.similarity_over_75:
            raise TableError(
                "similarity_over_50",
                f"thresholds must rise: 25 % at {self.similarity_over_25}, 50 % at {self.similarity_over_50}, "
                f"75 % at {self.similarity_over_75}",
            )


@dataclass(frozen=True, slots=True)
class ScrubPolicy:
    """Stored files are read and hashed again in the background (R14)."""

    every_hours: float = field(default=12.0, metadata=limits(1.0, 720.0))
    """A month at most: bits that flip one at a time are mended before they are too many."""
    duty: float = field(default=0.25, metadata=_DUTY)
    """Share of time spent reading and hashing, on top of the governor's own duty."""


@dataclass(frozen=True, slots=True)
class StorePolicy:
    """How tuned models are kept."""

    form: str = field(default="whole", metadata=limits(choices=("whole", "delta")))
    """`delta`: what was trained, and the frozen weights once for both slots; less to write, but both depend on them."""


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """What a tuned model must not do to be promoted, whatever its job asks for."""

    least_gain: float = field(default=-1.0, metadata=limits(-1.0, 1.0))
    """A job's `least_gain` counts as at least this."""
    class_samples: int = field(default=10, metadata=limits(1, 1_000_000))
    """Classes with fewer held-out samples are not judged one by one."""
    class_drop: float = field(default=0.1, metadata=_SHARE)
    """Share of right answers that a class may lose against the base (where it knew the class) and the running model."""
    class_least: float = field(default=0.0, metadata=_SHARE)
    """Share of right answers that every class must reach."""
    weight_growth: float = field(default=6.0, metadata=limits(1.0, 1e6))
    """Factor by which the norm of a layer may grow or shrink."""
    weight_update: float = field(default=5.0, metadata=limits(0.0, 1e6))
    """Norm of a layer's change over its own norm."""
    head_rms: float = field(default=15.0, metadata=limits(0.0, 1e6))
    """Root mean square of a tensor of a new head."""
    held_out: str = field(default="", metadata=limits(longest=1024))
    """Folder with the owner's own held-out data, one entry for each model it has some of; empty: none."""
    held_out_drop: float = field(default=0.02, metadata=_SHARE)
    """What a tuned model may lose on them: points of a share, or the part by which an error grows."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy."""

    name: str = field(default="default", metadata=limits(longest=64))
    thermal: ThermalPolicy = field(default_factory=ThermalPolicy)
    battery: BatteryPolicy = field(default_factory=BatteryPolicy)
    dvfs: DvfsPolicy = field(default_factory=DvfsPolicy)
    schedule: SchedulePolicy = field(default_factory=SchedulePolicy)
    predictive: PredictivePolicy = field(default_factory=PredictivePolicy)
    freezing: FreezingPolicy = field(default_factory=FreezingPolicy)
    scrub: ScrubPolicy = field(default_factory=ScrubPolicy)
    memory: MemoryPolicy = field(default_factory=MemoryPolicy)
    store: StorePolicy = field(default_factory=StorePolicy)
    gate: GatePolicy = field(default_factory=GatePolicy)

    def __post_init__(self) -> None:
        """Refuse a prediction that aims where training is paused already."""
        aim, pause = self.predictive.delta_kelvin, self.thermal.pause.delta_kelvin
        if self.predictive.enabled and aim > pause:
            raise TableError("predictive.delta_kelvin", f"is {aim}, above thermal.pause.delta_kelvin ({pause})")


def differences(before: Policy, after: Policy) -> dict[str, tuple[object, object]]:
    """Dotted keys whose values differ, each with the value before and after."""
    old, new = _flat(dataclasses.asdict(before)), _flat(dataclasses.asdict(after))
    return {key: (old[key], new[key]) for key in old if old[key] != new[key]}


def _flat(table: Mapping[str, object], path: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


def parse_policy(text: str) -> Policy:
    """Read a policy from TOML; a key left out keeps its default.

    Raises:
        PolicyError: not TOML, too long, an unknown key (with the nearest known one), a value of the wrong type or out
            of range, or keys that contradict each other.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise PolicyError("", "not UTF-8") from error
    if size > MAX_POLICY_BYTES:
        raise PolicyError("", f"policy is longer than {MAX_POLICY_BYTES} bytes")
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MAX_DOTS:
            raise PolicyError("", f"not TOML: more than {MAX_DOTS} dots (at line {number}, column 1)")
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and lists without end
        raise PolicyError("", f"not TOML: {error}") from error
    try:
        return build(Policy, table)
    except TableError as error:
        raise PolicyError(error.key[:MAX_KEY], error.what) from error
