"""Which parameters learn past the freeze boundary: all of them, the biases alone, or those worth their cost.

The sparse choice asks which parameters lower the loss most within a budget of work. Reaching a layer costs the input
gradients of all layers behind it, however few of those learn; so the deepest layer that learns and the subset of layers
behind it are chosen together, exactly, by one dynamic programme. After contribution analysis (Lin et al. 2022,
"On-Device Training Under 256KB Memory"), ElasticTrainer (Huang et al. 2023) and TinyTrain (Kwon et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agent.cost import FLOAT_BYTES, CostTable, LayerCost
from agent.engine.ir import Graph

BUDGET_STEPS = 2000
"""Costs are rounded up to whole parts of the budget; 52 layers then waste at most 2.6 % of it."""

VALUE_MACS = 80
"""Multiply-accumulates that take as long as moving one value of a layer's output through a pass: early layers, large
maps and few products, take far longer than their products say. Fitted to step times of MobileNetV2 at 96 pixels with 0,
25, 50 and 75 % frozen: shares of 1, 0.49, 0.32 and 0.12 against measured 1, 0.47, 0.31 and 0.13; products alone give 1,
0.70, 0.53 and 0.24."""
BIAS_MACS = 20
"""The same of adding up one value for a bias's gradient, which only reads."""


@dataclass(frozen=True, slots=True)
class Learner:
    """A parameter that learns.

    Attributes:
        layer: it belongs to, counted from the input.
        parameter: its name.
        macs: multiply-accumulates of its gradient for one sample; 0 for a bias.
    """

    layer: int
    parameter: str
    macs: int


@dataclass(frozen=True, slots=True)
class Option:
    """One way in which a layer may learn: what its parameters gain, and what their gradients cost."""

    parameters: tuple[str, ...]
    gain: float
    cost: int


@dataclass(frozen=True, slots=True)
class Offer:
    """What a layer offers.

    Attributes:
        options: at most one is taken; none of them leaves the layer as it is.
        pass_cost: paid as soon as an earlier layer learns: its input gradient must be found.
        reach_cost: paid where it is the first that learns.
    """

    options: tuple[Option, ...]
    pass_cost: int
    reach_cost: int = 0


def pass_work(cost: LayerCost) -> int:
    """What one pass of one sample through a layer takes, as so many multiply-accumulates."""
    return cost.macs + VALUE_MACS * cost.output_bytes // FLOAT_BYTES


def layer_offers(graph: Graph, costs: CostTable, gains: Mapping[str, float], *, cached: bool) -> tuple[Offer, ...]:
    """Offers of all layers, in `pass_work` of one sample.

    A weight's gradient costs what the layer's forward pass costs, and so does its input gradient. A layer may learn by
    its bias alone or whole; the head only whole. Where what crosses the boundary is cached, a step runs forward only
    from the first layer that learns.

    Args:
        graph: the model.
        costs: its table.
        gains: what each parameter is worth, as `agent.probe.parameter_gains` measures it.
        cached: whether frozen layers run once a sample and not in every step.
    """
    offers = []
    for layer, cost in zip(graph.layers(), costs.layers, strict=True):
        work = pass_work(cost)
        whole = Option(layer.parameters, sum(gains[name] for name in layer.parameters), work)
        sums = BIAS_MACS * cost.output_bytes // FLOAT_BYTES
        bias = (Option((layer.bias,), gains[layer.bias], sums),) if layer.bias else ()
        forward = work if cached else 0
        offers.append(Offer((*bias, whole), work + forward, forward))
    head = offers[-1]
    return (*offers[:-1], replace(head, options=head.options[-1:]))


def plan_cost(offers: Sequence[Offer], chosen: Sequence[Option | None]) -> int:
    """Cost when each layer learns as chosen: its own gradients, and what lies behind the first layer that learns."""
    deepest = next(index for index, option in enumerate(chosen) if option)
    passed = sum(offer.pass_cost for offer in offers[deepest + 1 :])
    return offers[deepest].reach_cost + passed + sum(option.cost for option in chosen if option)


def choose_options(offers: Sequence[Offer], budget: int, first: int = 0) -> tuple[Option | None, ...]:
    """The choice of greatest gain whose `plan_cost` is at most `budget`.

    Where the best option of every layer fits, that is the choice; else, of equally good ones, the shallower.

    With `best[c]` the greatest gain of the layers behind layer b for at most c parts of the budget, reaching b adds its
    own option and the chain of input gradients behind it, which depends on b alone: so one table, grown from the head
    towards the input, answers for every b. Costs are rounded up to parts of the budget, so it is never exceeded; while
    the budget is at most `BUDGET_STEPS` nothing is rounded and the choice is the best there is.

    Args:
        offers: of all layers, in execution order. The last one, the head, always learns, by its first option.
        budget: what all of it may cost, in the offers' unit.
        first: layers before this one stay as they are.

    Raises:
        ValueError: the head alone costs more.
    """
    whole = _everything(offers, first)
    if plan_cost(offers, whole) <= budget:
        return whole
    unit = max(1, -(-budget // BUDGET_STEPS))
    room = budget // unit
    head = offers[-1].options[0]
    least = head.cost + offers[-1].reach_cost
    if least > budget:
        raise ValueError(f"the head alone costs {least}, the budget is {budget}")
    left = room - -(-head.cost // unit)
    best = [0.0] * (left + 1)
    picks: list[list[int]] = []  # from the head towards the input: what a layer takes for each part of the budget
    reached: tuple[float, int, int, int] = (0.0, len(offers) - 1, 0, 0)
    passed = offers[-1].pass_cost
    for layer in range(len(offers) - 2, first - 1, -1):
        options = [(option.gain, -(-option.cost // unit)) for option in offers[layer].options]
        for taken, (gain, cost) in enumerate(options):
            rest = left - cost - -(-(passed + offers[layer].reach_cost) // unit)
            if rest >= 0 and gain + best[rest] > reached[0]:
                reached = (gain + best[rest], layer, taken, rest)
        best, taken_here = _with_layer(best, options)
        picks.append(taken_here)
        passed += offers[layer].pass_cost
    return _followed(offers, picks, reached, unit)


def _everything(offers: Sequence[Offer], first: int) -> tuple[Option | None, ...]:
    """The option of greatest gain of every layer from `first` on; of equal ones the first."""
    best = [max(offer.options, key=lambda option: option.gain, default=None) for offer in offers[:-1]]
    return (*(option if index >= first else None for index, option in enumerate(best)), offers[-1].options[0])


def _with_layer(best: list[float], options: Sequence[tuple[float, int]]) -> tuple[list[float], list[int]]:
    """The table once a layer may learn too, and which option it takes for each part of the budget (-1: none)."""
    grown, taken_here = list(best), [-1] * len(best)
    for taken, (gain, cost) in enumerate(options):
        for parts in range(cost, len(best)):
            if gain + best[parts - cost] > grown[parts]:
                grown[parts], taken_here[parts] = gain + best[parts - cost], taken
    return grown, taken_here


def _followed(
    offers: Sequence[Offer], picks: Sequence[Sequence[int]], reached: tuple[float, int, int, int], unit: int
) -> tuple[Option | None, ...]:
    """Walk the table back from the deepest layer that learns to the head."""
    _, deepest, taken, parts = reached
    chosen: list[Option | None] = [None] * len(offers)
    chosen[-1] = offers[-1].options[0]
    if deepest == len(offers) - 1:
        return tuple(chosen)
    chosen[deepest] = offers[deepest].options[taken]
    for layer in range(deepest + 1, len(offers) - 1):
        taken = picks[len(offers) - 2 - layer][parts]
        if taken >= 0:
            option = offers[layer].options[taken]
            chosen[layer] = option
            parts -= -(-option.cost // unit)
    return tuple(chosen)


def sparse_learners(
    graph: Graph, costs: CostTable, gains: Mapping[str, float], share: float, first: int = 0, *, cached: bool
) -> tuple[Learner, ...]:
    """What learns in a step that takes at most `share` (0..1) of the time of a full one.

    A step costs its forward pass (without a cache that of the frozen layers too) and its backward pass.

    Args:
        graph: the model.
        costs: its table.
        gains: see `layer_offers`.
        share: of a step in which everything learns.
        first: layers before this one stay as they are.
        cached: see `layer_offers`.

    Raises:
        ValueError: the head alone costs more.
    """
    offers = layer_offers(graph, costs, gains, cached=cached)
    always = 0 if cached else sum(pass_work(layer) for layer in costs.layers)
    full = always + plan_cost(offers, _everything(offers, 0))
    chosen = choose_options(offers, math.floor(share * full) - always, first)
    learning = {name for option in chosen if option for name in option.parameters}
    return tuple(learner for learner in _every_learner(graph, costs) if learner.parameter in learning)


def bias_learners(graph: Graph, costs: CostTable, first: int = 0) -> tuple[Learner, ...]:
    """All biases from layer `first` on, and the whole head (Cai et al. 2020, "TinyTL")."""
    layers = graph.layers()
    learning = {layer.bias for layer in layers[first:]} | set(layers[-1].parameters)
    return tuple(learner for learner in _every_learner(graph, costs) if learner.parameter in learning)


def _every_learner(graph: Graph, costs: CostTable) -> list[Learner]:
    return [
        Learner(layer.index, name, cost.macs if name == layer.weight else 0)
        for layer, cost in zip(graph.layers(), costs.layers, strict=True)
        for name in layer.parameters
    ]


def learners_macs(costs: CostTable, learners: Sequence[Learner]) -> int:
    """Multiply-accumulates of a step on one sample when these parameters learn, counted as in `CostTable.step_macs`."""
    deepest = min(learner.layer for learner in learners)
    passed = sum(layer.macs for layer in costs.layers[deepest + 1 :])
    return sum(layer.macs for layer in costs.layers) + passed + sum(learner.macs for learner in learners)
