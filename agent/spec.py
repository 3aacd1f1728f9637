"""What a fine-tune job asks for: the arguments of the command, the `temperd fine-tune` file and the worker's order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.card import MAX_COLUMNS, MAX_DIMENSION, MAX_LABEL_CHARACTERS
from agent.errors import SpecError
from policies.policy_schedule import parse_hours
from policies.strict import TableError, build, limits

DEPTH_CHOICES = ("auto", "0", "25", "50", "75", "head")
LABEL = "label"
CACHE_CHOICES = ("auto", "off", "float32", "float16", "int8")
MAX_BUDGET_MS = 60_000.0  # a pass over the parameters that takes a minute needs no bandwidth to speak of
MAX_DEADLINE_S = 31 * 86_400.0  # as long as a command may live
MAX_EVALUATION_S = 3600.0  # jobs wait for it meanwhile; a million samples of a small model take less
MOST_PRIORITY = 100  # either way: more ranks than anybody tells apart
MOST_BUDGET_J = 1e9  # 280 kWh: a board of 20 W draws that in a year and a half
LEAST_LIMIT_CELSIUS, MOST_LIMIT_CELSIUS = (
    20.0,
    125.0,
)  # as the policy's trips: below it never clears, above is no silicon
MAX_VIEWS = 16  # each is a whole epoch through the frozen part, and its share of the disk
LOSS_CHOICES = ("auto", "cross-entropy", "mse", "l1", "huber", "bce")
# What a job and an evaluation alike say of their samples: the same words must choose the same ones.
_HELD_OUT = limits(0.05, 0.5)
_SAMPLES = limits(2, 1_000_000)
_SEED = limits(0, 2**31 - 1)
_COLUMNS = limits(longest=MAX_COLUMNS)
_LABEL = limits(longest=MAX_LABEL_CHARACTERS)
_MISSING = limits(choices=("skip", "fill"))
_STRIDE = limits(1, MAX_DIMENSION)
_SEASON = limits(0, MAX_DIMENSION)


@dataclass(frozen=True, slots=True)
class FineTuneSpec:
    """A fine-tune job.

    `data` is a path on the board. For image classification: a folder of images with one folder a class, or an .npz
    file with the arrays x_train [N, H, W, C] uint8, y_train [N], x_test, y_test and classes. For the other tasks: rows
    in time order, a .csv file with a header or an .npz file with the arrays x [R, F], columns and label.
    """

    model: str = field(metadata=limits(longest=64))
    data: str = field(metadata=limits(longest=1024))
    version: str = field(default="latest", metadata=limits(longest=64))
    engine: str = field(default="auto", metadata=limits(choices=("auto", "graph", "ort-training")))
    depth: str = field(default="auto", metadata=limits(choices=DEPTH_CHOICES))
    """Share of parametric layers frozen, `head` (all but the last), or `auto`: chosen from similarity (R2)."""
    update: str = field(default="prefix", metadata=limits(choices=("prefix", "bias", "sparse")))
    """What learns past the boundary: all of it, the biases and the head, or the parameters worth their time."""
    update_budget: float = field(default=0.5, metadata=limits(0.0, 1.0))
    """For `sparse`: share of the time of a step with nothing frozen that a step may take."""
    head: str = field(default="auto", metadata=limits(choices=("auto", "replace", "keep")))
    """`keep` the model's classes, `replace` its head for the data's classes, or `auto`: keep when all are known."""
    image_size: int = field(default=96, metadata=limits(8, 1024))
    epochs: int = field(default=4, metadata=limits(1, 1000))
    batch: int = field(default=16, metadata=limits(1, 1024))
    optimizer: str = field(default="sgd", metadata=limits(choices=("sgd", "adamw")))
    learning_rate: float = field(default=0.001, metadata=limits(1e-7, 10.0))
    """Peak of the schedule. Models with folded batch-norm learn at a tenth of the usual rates: 0.003 and more diverged
    in trials with nothing frozen."""
    schedule: str = field(default="cosine", metadata=limits(choices=("cosine", "constant")))
    """How the learning rate goes on after the warm-up: along half a cosine to zero, or not at all."""
    warm_up: float = field(default=0.05, metadata=limits(0.0, 0.5))
    """Share of all steps over which the rate rises: fresh weights would else throw the others' gradients about."""
    momentum: float = field(default=0.9, metadata=limits(0.0, 0.999))
    weight_decay: float = field(default=0.0, metadata=limits(0.0, 1.0))
    clip_norm: float = field(default=0.0, metadata=limits(0.0, 1e6))
    """Gradients are scaled down to this global L2 norm; 0: never."""
    loss: str = field(default="auto", metadata=limits(choices=LOSS_CHOICES))
    """`auto`: cross-entropy for classes, mse for anomalies, huber for forecasts."""
    label_smoothing: float = field(default=0.0, metadata=limits(0.0, 0.5))
    micro_batch: int = field(default=0, metadata=limits(0, 1024))
    """Samples that go through the step at once; their gradients are summed. 0: chosen by the plan."""
    cache: str = field(default="auto", metadata=limits(choices=CACHE_CHOICES))
    """Number format in which the frozen part's activations are kept on disk while the job runs; `auto`: float16."""
    prefix: str = field(default="auto", metadata=limits(choices=("auto", "float32", "int8")))
    """Number format of the frozen layers; `auto` tries 8 bits where it may pay, `int8` always; both check it first."""
    slices: str = field(default="auto", metadata=limits(choices=("auto", "off", "on")))
    """Whether the first frozen layers run in tiles of rows, for their memory; `auto`: where those are not slower."""
    views: int = field(default=1, metadata=limits(1, MAX_VIEWS))
    """Fixed views of each training picture, a different one each epoch in turn; 1: the picture itself."""
    held_out: float = field(default=0.2, metadata=_HELD_OUT)
    """Share kept apart for the gate where the data has no test part of its own; of a series its last rows."""
    least_gain: float = field(default=0.0, metadata=limits(-1.0, 1.0))
    """Promote only when the held-out score beats that of the base and of the running model by at least this much:
    points of accuracy or AUC, or the share of an error that must go."""
    promote: str = field(default="auto", metadata=limits(choices=("auto", "ask")))
    """`ask`: a model that passes the gate waits in its slot for the command `promote`."""
    most_samples: int = field(default=20_000, metadata=_SAMPLES)
    seed: int = field(default=0, metadata=_SEED)
    columns: tuple[str, ...] = field(default=(), metadata=_COLUMNS)
    """Columns of the data for the model's features, in its order; empty: they have the names the card gives."""
    label: str = field(default=LABEL, metadata=_LABEL)
    """Column with 1 for anomalous and 0 for normal rows, where there is one."""
    missing: str = field(default="skip", metadata=_MISSING)
    """What becomes of rows without a value: windows that hold one are left out, or the last sound row is repeated."""
    stride: int = field(default=1, metadata=_STRIDE)
    """Rows from one window to the next."""
    season: int = field(default=0, metadata=_SEASON)
    """Rows of one season, for the forecast that repeats the last one; 0: as the card says."""
    budget_ms: float = field(default=0.0, metadata=limits(0.0, MAX_BUDGET_MS))
    """Time for one pass over the parameters, that is for a step of one micro-batch: T_budget of R10. A board whose
    memory cannot give that refuses the job. 0: none."""
    deadline_s: float = field(default=0.0, metadata=limits(0.0, MAX_DEADLINE_S))
    """The job should be done so many seconds after it was accepted; 0: whenever it is. It steers, it ends nothing."""
    priority: int = field(default=0, metadata=limits(-MOST_PRIORITY, MOST_PRIORITY))
    """Waiting jobs of a higher one go first. It takes no running job's place."""
    window: str = field(default="", metadata=limits(longest=11))
    """`22:00-06:00`, local time of the board: outside these hours the job waits, or is put aside. Empty: any time."""
    most_time_s: float = field(default=0.0, metadata=limits(0.0, MAX_DEADLINE_S))
    """So long a worker may be at work, pauses left out, all attempts together; then the job ends. 0: no bound."""
    most_energy_j: float = field(default=0.0, metadata=limits(0.0, MOST_BUDGET_J))
    """So much the board may draw while the job has a worker, pauses included; then the job ends. 0: no bound."""
    most_temperature_celsius: float = field(default=0.0, metadata=limits(0.0, MOST_LIMIT_CELSIUS))
    """The job pauses above it, whatever the policy allows; 0: as the policy says."""
    most_wait_s: float = field(default=0.0, metadata=limits(0.0, MAX_DEADLINE_S))
    """The job ends if it was not begun so many seconds after it was accepted; 0: it waits."""

    def __post_init__(self) -> None:
        """Refuse a window that is none and a temperature that no board falls below."""
        if self.window and parse_hours(self.window) is None:
            raise TableError("window", f"must look like 22:00-06:00 and not begin when it ends, is {self.window!r}")
        if 0.0 < self.most_temperature_celsius < LEAST_LIMIT_CELSIUS:
            least = f"{LEAST_LIMIT_CELSIUS:g}..{MOST_LIMIT_CELSIUS:g}"
            raise TableError("most_temperature_celsius", f"must be 0 or in {least}, is {self.most_temperature_celsius}")


@dataclass(frozen=True, slots=True)
class EvaluateSpec:
    """What an evaluate command asks for: which model, on which held-out samples. Keys of the same names are a job's.

    With the data, the seed and the share of a job these are the samples by which its gate judged.
    """

    data: str = field(metadata=limits(longest=1024))
    model: str = field(default="", metadata=limits(longest=64))
    """Empty: the active one; `base`: the published model that it was tuned from; the hash of a model in a slot; else
    the name of a published model."""
    held_out: float = field(default=0.2, metadata=_HELD_OUT)
    most_samples: int = field(default=20_000, metadata=_SAMPLES)
    seed: int = field(default=0, metadata=_SEED)
    columns: tuple[str, ...] = field(default=(), metadata=_COLUMNS)
    label: str = field(default=LABEL, metadata=_LABEL)
    missing: str = field(default="skip", metadata=_MISSING)
    stride: int = field(default=1, metadata=_STRIDE)
    season: int = field(default=0, metadata=_SEASON)
    most_time_s: float = field(default=MAX_EVALUATION_S, metadata=limits(1.0, MAX_EVALUATION_S))
    """After so many seconds, pauses included, it ends."""


def parse_spec(table: Mapping[str, object]) -> FineTuneSpec:
    """Read a table as a FineTuneSpec.

    Raises:
        SpecError: names the key, what is wrong with it and the nearest known key.
    """
    try:
        return build(FineTuneSpec, table)
    except TableError as error:
        raise SpecError(error.what, where=error.key, fix="See docs/first-job.md for every key") from error


def spec_table(spec: FineTuneSpec) -> dict[str, object]:
    """The spec as plain JSON values, every key written out."""
    return dataclasses.asdict(spec)
