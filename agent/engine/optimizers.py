"""Update rules as graph nodes: from weight gradients to new weights and new optimizer state.

State lives in tensors that go in and come out of the step: `momentum/<w>` for SGD with momentum, `adam_m/<w>` and
`adam_v/<w>` for AdamW. Formulas: see `OptimizerSpec`.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.engine.base import OptimizerSpec
from agent.engine.gradients import Product, Tape, WeightGradient

NEW = "new:"  # output name of a parameter or state tensor after the step
LEARNING_RATE = "learning_rate"
STEP_SIZE, ROOT_CORRECTION = "adam_step_size", "adam_root_correction"


@dataclass(frozen=True, slots=True)
class Update:
    """Names of one parameter's state tensors and the group whose step count it shares."""

    parameter: str
    states: tuple[str, ...]
    group: int = 0


def state_names(spec: OptimizerSpec, parameter: str) -> tuple[str, ...]:
    """State tensors a parameter needs, each of the parameter's own shape."""
    if spec.kind == "adamw":
        return (f"adam_m/{parameter}", f"adam_v/{parameter}")
    return (f"momentum/{parameter}",) if spec.momentum > 0 else ()


def rides_in_gradient(spec: OptimizerSpec) -> bool:
    """Whether the loss gradient is scaled by the learning rate: plain SGD is then w - g, one pass over each weight."""
    return spec.kind == "sgd" and spec.momentum == 0 and spec.weight_decay == 0


def emit_update(tape: Tape, spec: OptimizerSpec, update: Update, gradient: WeightGradient) -> None:
    """Emit nodes that make `new:<name>` for the parameter and each of its state tensors."""
    if rides_in_gradient(spec):
        _plain(tape, update.parameter, gradient)
    elif spec.kind == "adamw":
        _adamw(tape, spec, update, materialized(tape, gradient))
    elif update.states:
        _momentum(tape, spec, update, gradient)
    else:
        step = tape.emit("Mul", _decayed(tape, spec, update.parameter, gradient), LEARNING_RATE)
        _output(tape, update.parameter, "Sub", update.parameter, step)


def materialized(tape: Tape, gradient: WeightGradient) -> str:
    """The gradient as a tensor of the weight's shape."""
    if isinstance(gradient, str):
        return gradient
    product = tape.emit("Gemm", gradient.a, gradient.b, transA=int(gradient.transpose_a))
    return tape.reshape(product, *gradient.shape)


def _output(tape: Tape, name: str, op: str, *inputs: str) -> None:
    made = tape.emit(op, *inputs)
    last = tape.nodes.pop()
    assert last.outputs == (made,)
    tape.nodes.append(type(last)(last.op, last.inputs, (NEW + name,), last.attrs, last.name, last.domain))


def _decayed(tape: Tape, spec: OptimizerSpec, parameter: str, gradient: WeightGradient) -> str:
    value = materialized(tape, gradient)
    if spec.weight_decay == 0:
        return value
    return tape.emit("Add", value, tape.emit("Mul", parameter, tape.scalar(spec.weight_decay)))


def _plain(tape: Tape, parameter: str, gradient: WeightGradient) -> None:
    """The update w - g inside the product that makes g, where it is one."""
    if isinstance(gradient, str):
        _output(tape, parameter, "Sub", parameter, gradient)
        return
    before = tape.reshape(parameter, gradient.rows, gradient.columns)
    after = tape.emit("Gemm", gradient.a, gradient.b, before, transA=int(gradient.transpose_a), alpha=-1.0, beta=1.0)
    _output(tape, parameter, "Reshape", after, tape.ints(*gradient.shape))


def _momentum(tape: Tape, spec: OptimizerSpec, update: Update, gradient: WeightGradient) -> None:
    """Heavy ball: v <- mu v + g; w <- w - lr v. When g is one product, mu v rides in its GEMM as beta C."""
    state, parameter = update.states[0], update.parameter
    if isinstance(gradient, Product) and spec.weight_decay == 0:
        carried = tape.reshape(state, gradient.rows, gradient.columns)
        velocity = tape.emit(
            "Gemm", gradient.a, gradient.b, carried, transA=int(gradient.transpose_a), alpha=1.0, beta=spec.momentum
        )
        _output(tape, state, "Reshape", velocity, tape.ints(*gradient.shape))
    else:
        carried = tape.emit("Mul", state, tape.scalar(spec.momentum))
        _output(tape, state, "Add", carried, _decayed(tape, spec, parameter, gradient))
    _output(tape, parameter, "Sub", parameter, tape.emit("Mul", NEW + state, LEARNING_RATE))


def _adamw(tape: Tape, spec: OptimizerSpec, update: Update, gradient: str) -> None:
    """AdamW: m <- b1 m + (1-b1) g; v <- b2 v + (1-b2) g^2; w <- w - lr decay w - step m / (sqrt(v) root + eps).

    step = lr / (1 - b1^t) and root = 1 / sqrt(1 - b2^t) are inputs of the graph, one pair a group.
    """
    (m, v), parameter = update.states, update.parameter
    _output(
        tape,
        m,
        "Add",
        tape.emit("Mul", m, tape.scalar(spec.beta1)),
        tape.emit("Mul", gradient, tape.scalar(1 - spec.beta1)),
    )
    square = tape.emit("Mul", gradient, gradient)
    _output(
        tape,
        v,
        "Add",
        tape.emit("Mul", v, tape.scalar(spec.beta2)),
        tape.emit("Mul", square, tape.scalar(1 - spec.beta2)),
    )
    root = tape.emit("Mul", tape.emit("Sqrt", NEW + v), f"{ROOT_CORRECTION}.{update.group}")
    ratio = tape.emit("Div", NEW + m, tape.emit("Add", root, tape.scalar(spec.epsilon)))
    kept = parameter
    if spec.weight_decay:
        shrink = tape.emit("Mul", LEARNING_RATE, tape.scalar(spec.weight_decay))
        kept = tape.emit("Sub", parameter, tape.emit("Mul", parameter, shrink))
    _output(tape, parameter, "Sub", kept, tape.emit("Mul", ratio, f"{STEP_SIZE}.{update.group}"))
