from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.arena import LINE_FLOATS, Arena, bound
from agent.engine.ir import Node, model_proto
from agent.engine.sessions import session

some_shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=12)


@given(some_shapes)
def test_tensors_lie_aligned_in_order_and_apart(shapes: list[tuple[int, ...]]) -> None:
    names = [f"w{i}" for i in range(len(shapes))]
    arena = Arena(dict(zip(names, shapes, strict=True)))
    for number, name in enumerate(names):
        assert arena.views[name].shape == shapes[number]
        arena.views[name][...] = number + 1
    for number, name in enumerate(names):
        assert (arena.views[name] == number + 1).all()
        assert arena.views[name].size == 0 or arena.views[name].ctypes.data % (4 * LINE_FLOATS) == 0
    starts = [arena.views[name].ctypes.data for name in names if arena.views[name].size]
    assert starts == sorted(starts)
    assert np.count_nonzero(arena.flat) == sum(int(np.prod(shape)) for shape in shapes)


@given(st.sets(st.integers(0, 9)))
def test_runs_are_the_longest_stretches_of_neighbours(chosen: set[int]) -> None:
    arena = Arena({f"w{i}": (3,) for i in range(10)})
    runs = arena.runs([f"w{i}" for i in sorted(chosen)])
    covered: list[int] = []
    for first, last in runs:
        start, end = int(first[1:]), int(last[1:])
        assert covered == [] or start > covered[-1] + 1
        covered += range(start, end + 1)
    assert covered == sorted(chosen)


def test_a_span_holds_its_tensors_and_what_is_between() -> None:
    arena = Arena({"a": (3,), "b": (2, 2), "c": (5,)})
    arena.fill({"a": np.full(3, 1.0), "b": np.full((2, 2), 2.0), "c": np.full(5, 3.0)})
    part = arena.flat[arena.span("b", "c")]
    assert sorted(part[part > 0].tolist()) == [2.0] * 4 + [3.0] * 5
    with pytest.raises(KeyError):
        arena.span("a", "nothing")


def test_a_session_reads_and_writes_where_the_arena_is() -> None:
    arena = Arena({"a": (2, 3), "b": (2, 3)})
    arena.fill({"a": np.arange(6.0).reshape(2, 3), "b": np.ones((2, 3))})
    spec = (np.float32, (2, 3))
    adding = session(
        model_proto([Node("Add", ("a", "b"), ("c",), {}, "add")], {}, {"a": spec, "b": spec}, {"c": spec}), 1
    )
    binding = adding.io_binding()
    for name in ("a", "b"):
        binding.bind_ortvalue_input(name, bound(arena.views[name]))
    binding.bind_ortvalue_output("c", bound(arena.views["a"]))
    for _ in range(3):
        adding.run_with_iobinding(binding)
    np.testing.assert_array_equal(arena.views["a"], np.arange(6.0).reshape(2, 3) + 3)
