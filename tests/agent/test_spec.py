from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import SpecError
from agent.spec import CACHE_CHOICES, DEPTH_CHOICES, LOSS_CHOICES, FineTuneSpec, parse_spec, spec_table

LEAST = {"model": "efficientnet-lite0", "data": "/srv/images"}
BOUNDS = {  # key: lowest, highest, step outside
    "image_size": (8, 1024, 1),
    "epochs": (1, 1000, 1),
    "batch": (1, 1024, 1),
    "learning_rate": (1e-7, 10.0, 1e-8),
    "momentum": (0.0, 0.999, 1e-3),
    "weight_decay": (0.0, 1.0, 1e-3),
    "held_out": (0.05, 0.5, 1e-3),
    "least_gain": (-1.0, 1.0, 1e-3),
    "most_samples": (2, 1_000_000, 1),
    "seed": (0, 2**31 - 1, 1),
    "warm_up": (0.0, 0.5, 1e-3),
    "clip_norm": (0.0, 1e6, 1.0),
    "label_smoothing": (0.0, 0.5, 1e-3),
    "micro_batch": (0, 1024, 1),
    "views": (1, 16, 1),
    "stride": (1, 4096, 1),
    "season": (0, 4096, 1),
    "budget_ms": (0.0, 60_000.0, 1.0),
    "deadline_s": (0.0, 2_678_400.0, 1.0),
}


def number(low: float, high: float) -> st.SearchStrategy[float]:
    return st.integers(low, high) if isinstance(low, int) else st.floats(low, high, allow_subnormal=False)


specs = st.builds(
    FineTuneSpec,
    model=st.text(max_size=64),
    data=st.text(max_size=1024),
    version=st.text(max_size=64),
    engine=st.sampled_from(["auto", "graph", "ort-training"]),
    depth=st.sampled_from(DEPTH_CHOICES),
    head=st.sampled_from(["auto", "replace", "keep"]),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    schedule=st.sampled_from(["cosine", "constant"]),
    loss=st.sampled_from(LOSS_CHOICES),
    cache=st.sampled_from(CACHE_CHOICES),
    columns=st.lists(st.text(max_size=20), max_size=4).map(tuple),
    label=st.text(max_size=128),
    missing=st.sampled_from(["skip", "fill"]),
    **{key: number(low, high) for key, (low, high, _) in BOUNDS.items()},
)


@settings(derandomize=True, deadline=None)
@given(specs)
def test_a_spec_survives_its_table_as_json(spec: FineTuneSpec) -> None:
    assert parse_spec(json.loads(json.dumps(spec_table(spec)))) == spec


def test_model_and_data_are_all_that_must_be_given() -> None:
    assert parse_spec(LEAST) == FineTuneSpec("efficientnet-lite0", "/srv/images")
    for key in LEAST:
        with pytest.raises(SpecError, match="missing") as caught:
            parse_spec({k: v for k, v in LEAST.items() if k != key})
        assert caught.value.where == key


@pytest.mark.parametrize("key", BOUNDS)
def test_bounds_are_inclusive(key: str) -> None:
    low, high, step = BOUNDS[key]
    for inside in (low, high):
        assert spec_table(parse_spec(LEAST | {key: inside}))[key] == inside
    for outside in (low - step, high + step):
        with pytest.raises(SpecError, match="is outside") as caught:
            parse_spec(LEAST | {key: outside})
        assert caught.value.where == key


@pytest.mark.parametrize(
    ("change", "where", "says"),
    [
        ({"modle": "x"}, "modle", "did you mean 'model'"),
        ({"depth": "60"}, "depth", "not one of auto, 0, 25, 50, 75, head"),
        ({"depth": 50}, "depth", "must be a text"),
        ({"engine": "torch"}, "engine", "not one of"),
        ({"head": "drop"}, "head", "not one of"),
        ({"optimizer": "lion"}, "optimizer", "not one of"),
        ({"cache": "on"}, "cache", "not one of auto, off, float32, float16, int8"),
        ({"loss": "hinge"}, "loss", "not one of auto, cross-entropy, mse, l1, huber, bce"),
        ({"schedule": "step"}, "schedule", "not one of cosine, constant"),
        ({"missing": "drop"}, "missing", "not one of skip, fill"),
        ({"columns": "a"}, "columns", "must be a list"),
        ({"columns": ["a", 1]}, "columns[1]", "must be a text"),
        ({"epochs": True}, "epochs", "whole number"),
        ({"epochs": 1.5}, "epochs", "whole number"),
        ({"batch": "16"}, "batch", "whole number"),
        ({"learning_rate": float("nan")}, "learning_rate", "finite"),
        ({"model": "m" * 65}, "model", "at most 64"),
        ({"data": "d" * 1025}, "data", "at most 1024"),
        ({"image-size": 96, "image_size": 96}, "image_size", "given twice"),
    ],
)
def test_a_wrong_spec_is_refused_by_key_and_with_advice(change: dict[str, object], where: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        parse_spec(LEAST | change)
    assert caught.value.where == where
    assert caught.value.code == "bad-spec"
    assert caught.value.fix
