from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.strict import TableError, build, limits

steady = settings(derandomize=True, deadline=None, max_examples=150)


@dataclass(frozen=True)
class Fan:
    """A part with a judgement of its own."""

    slow_rpm: int
    fast_rpm: int = 3000

    def __post_init__(self) -> None:
        if self.slow_rpm > self.fast_rpm:
            raise TableError("slow_rpm", "faster than fast_rpm")


@dataclass(frozen=True)
class Rig:
    name: str = field(metadata=limits(longest=5))
    fan: Fan
    duty: float = field(default=1.0, metadata=limits(0.0, 1.0))
    level: int = field(default=0, metadata=limits(-2, 2))
    mode: str = field(default="run", metadata=limits(choices=("run", "slow")))
    quiet: bool = False
    trips: tuple[float, ...] = field(default=(), metadata=limits(0.0, 100.0, longest=3))
    spares: tuple[Fan, ...] = ()
    limit: int | None = None
    ambient: float | None = field(default=None, metadata=limits(-40.0, 60.0))
    standby: Fan | None = None
    tag: str | int = "none"
    by_name: dict[str, int] = field(default_factory=dict)
    extra: object = None
    made: int = field(default=7, init=False)


LEAST: dict[str, Any] = {"name": "a", "fan": {"slow_rpm": 1}}


def plain(value: object) -> object:
    """A Rig as the table it can be read from."""
    table = dataclasses.asdict(value)  # type: ignore[call-overload]
    del table["made"]
    return table


def test_what_is_left_out_keeps_its_default() -> None:
    assert build(Rig, LEAST) == Rig("a", Fan(1))


def test_every_kind_of_field_is_read() -> None:
    table = LEAST | {
        "duty": 0.5,
        "level": -2,
        "mode": "slow",
        "quiet": True,
        "trips": [1, 2.5],
        "spares": [{"slow-rpm": 3}, {"slow_rpm": 4, "fast-rpm": 5}],
        "limit": None,
        "ambient": -40,
        "standby": {"slow_rpm": 9},
        "tag": 3,
        "by_name": {"left-hand": 1},
        "extra": {"any": [None]},
    }
    rig = build(Rig, table)
    assert rig.trips == (1.0, 2.5)
    assert [type(value) for value in rig.trips] == [float, float]
    assert rig.spares == (Fan(3), Fan(4, 5))
    assert (rig.limit, rig.ambient, rig.standby, rig.tag) == (None, -40.0, Fan(9), 3)
    assert rig.by_name == {"left-hand": 1}
    assert rig.extra == {"any": [None]}


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ({"dutty": 1.0}, "dutty", "did you mean 'duty'"),
        ({"zzzzzz": 1}, "zzzzzz", "known keys: ambient, by_name, duty"),
        ({"made": 8}, "made", "unknown key"),
        ({"by-name": {}, "by_name": {}}, "by_name", "given twice"),
        ({"fan": {}}, "fan.slow_rpm", "missing"),
        ({"fan": {"slow_rpm": 1, "fast": 2}}, "fan.fast", "did you mean 'fast_rpm'"),
        ({"fan": {"slow_rpm": 9, "fast_rpm": 8}}, "fan.slow_rpm", "faster than"),
        ({"spares": [{"slow_rpm": 1}, {"slow_rpm": 9, "fast_rpm": 8}]}, "spares[1].slow_rpm", "faster than"),
        ({"fan": [1]}, "fan", "must be a table, not a list"),
        ({"standby": 3}, "standby", "must be a table, not a whole number"),
        ({"by_name": [1]}, "by_name", "must be a table, not a list"),
        ({"by_name": {"left": "x"}}, "by_name.left", "must be a whole number, not a text"),
        ({"trips": 3.0}, "trips", "must be a list, not a number"),
        ({"trips": [1.0, "x"]}, "trips[1]", "must be a number, not a text"),
        ({"trips": [1.0, 101.0]}, "trips[1]", "101.0 is outside 0.0..100.0"),
        ({"trips": [1.0] * 4}, "trips", "has 4 entries, at most 3"),
        ({"name": "abcdef"}, "name", "has 6 characters, at most 5"),
        ({"name": {}}, "name", "must be a text, not a table"),
        ({"mode": "fly"}, "mode", "'fly' is not one of run, slow"),
        ({"level": 3}, "level", "3 is outside -2..2"),
        ({"level": True}, "level", "must be a whole number, not true or false"),
        ({"level": 1.0}, "level", "must be a whole number, not a number"),
        ({"level": None}, "level", "must be a whole number, not NoneType"),
        ({"quiet": 1}, "quiet", "must be true or false, not a whole number"),
        ({"duty": 1.01}, "duty", "1.01 is outside 0.0..1.0"),
        ({"duty": True}, "duty", "must be a number"),
        ({"duty": math.nan}, "duty", "must be finite"),
        ({"duty": -math.inf}, "duty", "must be finite"),
        ({"duty": 10**400}, "duty", "must be finite"),
        ({"ambient": 60.5}, "ambient", "outside -40.0..60.0"),
        ({"ambient": "warm"}, "ambient", "must be a number, not a text"),
        ({"limit": 1.5}, "limit", "must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(change: dict[str, object], key: str, says: str) -> None:
    with pytest.raises(TableError) as caught:
        build(Rig, LEAST | change)
    assert caught.value.key == key
    assert says in caught.value.what
    assert str(caught.value) == f"{key}: {caught.value.what}"


def test_a_path_stands_before_every_key() -> None:
    with pytest.raises(TableError, match=r"^job\.rig\.fan\.slow_rpm: missing$"):
        build(Rig, {"name": "a", "fan": {}}, "job.rig")


def test_ranges_that_are_open_on_one_side_say_so() -> None:
    @dataclass
    class Half:
        up: int = field(default=0, metadata=limits(least=0))
        down: int = field(default=0, metadata=limits(most=9))

    with pytest.raises(TableError, match=r"up: -1 is outside 0\.\.$"):
        build(Half, {"up": -1})
    with pytest.raises(TableError, match=r"down: 10 is outside \.\.9$"):
        build(Half, {"down": 10})
    assert build(Half, {"up": 10**30, "down": -(10**30)}) == Half(10**30, -(10**30))


fans = st.builds(Fan, slow_rpm=st.integers(max_value=0), fast_rpm=st.integers(min_value=0))
rigs = st.builds(
    Rig,
    name=st.text(max_size=5),
    fan=fans,
    duty=st.floats(0, 1, allow_subnormal=False),
    level=st.integers(-2, 2),
    mode=st.sampled_from(["run", "slow"]),
    quiet=st.booleans(),
    trips=st.lists(st.floats(0, 100, allow_subnormal=False), max_size=3).map(tuple),
    spares=st.lists(fans, max_size=3).map(tuple),
    limit=st.none() | st.integers(),
    ambient=st.none() | st.floats(-40, 60, allow_subnormal=False),
    standby=st.none() | fans,
    tag=st.text() | st.integers(),
    by_name=st.dictionaries(st.text(), st.integers()),
    extra=st.none() | st.text(),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@steady
@given(rigs)
def test_reads_back_what_is_written_out(rig: Rig) -> None:
    assert build(Rig, plain(rig)) == rig  # type: ignore[arg-type]


@steady
@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Rig)]) | st.text(), anything))
def test_any_table_is_read_whole_or_refused(table: dict[str, object]) -> None:
    """No other exception, and nothing that breaks a bound gets in."""
    try:
        rig = build(Rig, LEAST | table)
    except TableError as error:
        assert error.what  # noqa: PT017 - both ends are allowed
        return
    assert len(rig.name) <= 5
    assert 0 <= rig.duty <= 1
    assert -2 <= rig.level <= 2
    assert rig.mode in {"run", "slow"}
    assert type(rig.quiet) is bool
    assert build(Rig, plain(rig)) == rig or "nan" in repr(rig)  # type: ignore[arg-type]
