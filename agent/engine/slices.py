"""The frozen part's first stage in tiles of rows, so that no large map is in memory as a whole.

Early layers have few weights and large maps. A tile of output rows needs only some rows of each map before it, some of
which its neighbours need as well (halos) and compute again: memory and cache misses are paid for with multiplications
(patch-based inference: Lin et al. 2021, MCUNetV2; the arithmetic of the rows: Araujo et al. 2019, "Computing receptive
fields of convolutional neural networks"). Results are those of the whole maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agent.engine.arena import FLOAT_BYTES
from agent.engine.footprint import live_peak
from agent.engine.ir import Array, Attribute, Node
from agent.engine.layout import BINARY, RANK, SPATIAL, UNARY
from agent.engine.trials import median_seconds
from agent.errors import ModelError

BUDGET_BYTES = 256 << 10  # a block that stays in the second-level cache of a small core
MOST_MACS = 1.3  # of the frozen part, halos included: more time than that is not to be had back from the cache
TILE_COUNTS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)  # each tile adds all nodes of the stage to the graph
MOST_STAGE_NODES = 200  # times 16 tiles: the runtime's graph stays small
SLOWER_ALLOWED = 1.05  # of the time on whole maps, for the memory
SAME_WITHIN = 1e-5  # of the largest value: the order of float32 sums may differ, nothing else
HEIGHT = 2  # axis of the rows in [N, C, H, W]

Shapes = Mapping[str, tuple[int, ...]]
Rows = tuple[int, int]
"""First row, and the one past the last."""


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """A frozen part whose first stage runs in tiles of rows.

    Attributes:
        nodes: all its nodes, in an order that ends one tile before the next begins.
        constants: what the new nodes read besides the old constants.
        stage_end: the tensor up to which it is tiled.
        tiles: how many tiles.
        block_bytes: largest tensor that its nodes make, of one sample.
        whole_block_bytes: the same without tiles.
        live_bytes: largest sum of tensors that are alive at once, of one sample, outputs apart.
        whole_live_bytes: the same without tiles.
        macs_ratio: multiplications with and without tiles, the latter 1.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    stage_end: str
    tiles: int
    block_bytes: int
    whole_block_bytes: int
    live_bytes: int
    whole_live_bytes: int
    macs_ratio: float


@dataclass(frozen=True, slots=True)
class SliceCheck:
    """Whether tiles replace whole maps on this board, and what that rests on.

    Attributes:
        keep: use the tiles.
        reason: why, in one clause.
        whole_seconds: median duration of one batch on whole maps.
        sliced_seconds: the same in tiles.
        plan: the tiles.
    """

    keep: bool
    reason: str
    whole_seconds: float
    sliced_seconds: float
    plan: SlicePlan


def slice_rows(
    nodes: Sequence[Node],
    constants: Mapping[str, Array],
    shapes: Shapes,
    crossing: Collection[str],
    budget_bytes: int = BUDGET_BYTES,
) -> tuple[SlicePlan, ...]:
    """Choose the stage and the tiles in one or two ways, the one with the least memory first.

    The first brings the largest block as near to the budget as it can; the second only halves the live tensors: what
    saves less is lost again in the arena, whose free pieces do not fit tiles of other sizes. Of what does that equally
    well, the one with the fewest multiplications is chosen.

    Args:
        nodes: the frozen part in order; its one input is what nothing here makes.
        constants: values of what the nodes read besides.
        shapes: static shapes for one sample.
        crossing: tensors that must still be made.
        budget_bytes: a block of this size is small enough.

    Raises:
        ModelError: no tiling makes its largest block smaller, within MOST_MACS multiplications.
    """
    whole = _measure(nodes, shapes, crossing)
    found = list(_candidates(nodes, constants, shapes, crossing, whole)) if whole.block > budget_bytes else []
    if not found:
        raise ModelError(
            f"tiles of rows would save nothing: the largest block of a sample has {whole.block} bytes",
            fix='Leave slices at "auto" or "off"',
        )

    def cost(one: _Candidate) -> tuple[int, int, int]:
        # A later end of the same cost leaves a Clip behind its Conv, where the runtime makes one of both.
        return one.measured.macs, one.tiles, -one.end

    least = min(found, key=lambda one: (max(one.measured.block, budget_bytes), *cost(one)))
    halved = min((one for one in found if 2 * one.measured.live <= whole.live), key=cost, default=least)
    chosen = (least,) if halved.measured.live <= least.measured.live else (least, halved)
    return tuple(_plan(nodes, shapes, one, whole) for one in chosen)


def _plan(nodes: Sequence[Node], shapes: Shapes, one: _Candidate, whole: _Measured) -> SlicePlan:
    end, now = nodes[one.end].outputs[0], one.measured
    writer = _Writer(nodes[: one.end + 1], dict(shapes), end)
    sliced = (*writer.write(one.tiles), *nodes[one.end + 1 :])
    ratio = now.macs / whole.macs if whole.macs else 1.0
    return SlicePlan(
        sliced, writer.constants, end, one.tiles, now.block, whole.block, now.live, whole.live, ratio
    )  # fmt: skip


def _candidates(
    nodes: Sequence[Node], constants: Mapping[str, Array], shapes: Shapes, crossing: Collection[str], whole: _Measured
) -> Iterator[_Candidate]:
    """Stages and tiles that take less memory than whole maps, and no more than MOST_MACS."""
    for end in _stage_ends(nodes, constants, shapes, crossing):
        made = nodes[end].outputs[0]
        for tiles in TILE_COUNTS:
            if tiles > shapes[made][HEIGHT]:
                break
            writer = _Writer(nodes[: end + 1], dict(shapes), made)
            now = _measure((*writer.write(tiles), *nodes[end + 1 :]), writer.shapes, crossing)
            if now.macs > MOST_MACS * whole.macs:
                break  # more tiles have more halos
            if now.live <= whole.live and now.block < whole.block:
                yield _Candidate(end, tiles, now)


def faster_slices(
    whole_run: Callable[[], Sequence[Array]],
    sliced_run: Callable[[], Sequence[Array]],
    plan: SlicePlan,
    slower_allowed: float = SLOWER_ALLOWED,
) -> SliceCheck:
    """Keep tiles that give the same values in no more than the time allowed.

    Args:
        whole_run: one batch on whole maps, to what crosses the boundary.
        sliced_run: the same batch in tiles.
        plan: the tiles.
        slower_allowed: times the duration on whole maps; infinite: the memory is worth any time.
    """
    for exact, tiled in zip(whole_run(), sliced_run(), strict=True):
        if not np.allclose(tiled, exact, rtol=0, atol=SAME_WITHIN * max(1.0, float(np.abs(exact).max()))):
            return SliceCheck(False, "the runtime gives other values in tiles", math.nan, math.nan, plan)
    taken = median_seconds({"whole": whole_run, "sliced": sliced_run})
    ratio = taken["sliced"] / taken["whole"]
    saved = f"{plan.whole_block_bytes >> 10} to {plan.block_bytes >> 10} KiB"
    reason = f"largest block from {saved} in {ratio:.2f} times the time, {slower_allowed:g} is allowed"
    return SliceCheck(ratio <= slower_allowed, reason, taken["whole"], taken["sliced"], plan)


@dataclass(frozen=True, slots=True)
class _Measured:
    block: int
    live: int
    macs: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    end: int
    """Position of the stage's last node."""
    tiles: int
    measured: _Measured


def _measure(nodes: Sequence[Node], shapes: Shapes, crossing: Collection[str]) -> _Measured:
    sizes = {name: math.prod(shapes[name]) * FLOAT_BYTES for node in nodes for name in node.outputs if name}
    live = live_peak([(node.op, node.inputs, node.outputs) for node in nodes], sizes, crossing)
    convolutions = [node for node in nodes if node.op == "Conv"]
    macs = sum(math.prod(shapes[node.outputs[0]]) * math.prod(shapes[node.inputs[1]][1:]) for node in convolutions)
    return _Measured(max(sizes.values(), default=0), live, macs)


def _stage_ends(
    nodes: Sequence[Node], constants: Mapping[str, Array], shapes: Shapes, crossing: Collection[str]
) -> list[int]:
    """Nodes up to which all can run on rows, with one tensor alive behind them: what they make."""
    last = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    last |= dict.fromkeys(crossing, len(nodes))
    alive: set[str] = set()
    found = []
    for index, node in enumerate(nodes[:MOST_STAGE_NODES]):
        if not _runs_on_rows(node, constants, shapes):
            break
        alive = {name for name in alive | {node.outputs[0]} if last.get(name, -1) > index}
        if alive == {node.outputs[0]}:
            found.append(index)
    return found


def _runs_on_rows(node: Node, constants: Mapping[str, Array], shapes: Shapes) -> bool:
    """Whether rows of its output depend on some rows of its inputs only."""
    if node.domain or len(node.outputs) != 1 or node.inputs[0] in constants:
        return False
    if any(len(shapes.get(name, ())) != RANK for name in (*_tensors(node, constants), node.outputs[0])):
        return False
    if node.op in UNARY:
        return all(name in constants for name in node.inputs[1:] if name)
    if node.op in BINARY:
        return all(_any_row(constants[name]) for name in node.inputs if name in constants) and all(
            shapes[name] == shapes[node.outputs[0]] for name in _tensors(node, constants)
        )
    return (node.op == "Conv" or node.op in SPATIAL) and _window_moves(node, constants, shapes)


def _window_moves(node: Node, constants: Mapping[str, Array], shapes: Shapes) -> bool:
    """Whether a Conv or pool can run on some rows, with pads of its own."""
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or node.attrs.get("ceil_mode", 0):
        return False
    if any(name not in constants for name in node.inputs[1:] if name):
        return False
    window = _window(node, shapes)
    return max(window.top, window.bottom) < window.extent  # else a row may depend on padding alone


def _any_row(value: Array) -> bool:
    """Whether a constant means the same for every row."""
    return value.ndim < 2 or value.shape[-2] == 1  # noqa: PLR2004 - rows are the last axis but one


def _tensors(node: Node, constants: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(name for name in node.inputs if name and name not in constants)


@dataclass(frozen=True, slots=True)
class _Window:
    """What a Conv or pool reads along the rows: row r from `r stride - top`, `extent` rows."""

    stride: int
    extent: int
    top: int
    bottom: int


def _window(node: Node, shapes: Shapes) -> _Window:
    kernel = shapes[node.inputs[1]][2:] if node.op == "Conv" else node.ints("kernel_shape", ())
    extent = (kernel[0] - 1) * node.ints("dilations", (1, 1))[0] + 1
    pads = _pads(node)
    return _Window(node.ints("strides", (1, 1))[0], extent, pads[0], pads[2])


def _pads(node: Node) -> tuple[int, ...]:
    """Top, left, bottom, right."""
    return (0, 0, 0, 0) if node.attrs.get("auto_pad") == "VALID" else node.ints("pads", (0, 0, 0, 0))


def _reads(node: Node, rows: Rows, shapes: Shapes) -> Rows:
    """Rows of its input that rows of its output are made from; negative ones and those past the end are padding."""
    if node.op != "Conv" and node.op not in SPATIAL:
        return rows
    window = _window(node, shapes)
    first = rows[0] * window.stride - window.top
    return first, (rows[1] - 1) * window.stride - window.top + window.extent


@dataclass(slots=True)
class _Writer:
    """Writes a stage once a tile.

    Attributes:
        stage: its nodes.
        shapes: static shapes; those of the tiles are added.
        end: the tensor it makes.
        constants: what the slices read.
    """

    stage: Sequence[Node]
    shapes: dict[str, tuple[int, ...]]
    end: str
    constants: dict[str, Array] = field(default_factory=dict)
    _made: list[Node] = field(default_factory=list)

    def write(self, tiles: int) -> list[Node]:
        height = self.shapes[self.end][HEIGHT]
        edges = [height * tile // tiles for tile in range(tiles + 1)]
        outputs = [self._tile(tile, (edges[tile], edges[tile + 1])) for tile in range(tiles)]
        self._made.append(Node("Concat", tuple(outputs), (self.end,), {"axis": HEIGHT}, f"{self.end}.tiles"))
        return self._made

    def _tile(self, tile: int, rows: Rows) -> str:
        made = {node.outputs[0] for node in self.stage}
        needed = self._needed(rows)
        for node in self.stage:
            if node.outputs[0] not in needed:
                continue  # nothing reads it
            target = needed[node.outputs[0]]
            wanted = _reads(node, target, self.shapes)
            inputs = tuple(
                self._rows_of(name, self._within(name, wanted), needed, tile, whole=name not in made)
                if self._has_rows(name, made)
                else name
                for name in node.inputs
            )
            output = self._declare(f"{node.outputs[0]}@tile{tile}", node.outputs[0], target)
            attrs = self._attrs(node, wanted)
            self._made.append(replace(node, inputs=inputs, outputs=(output,), attrs=attrs, name=f"{node.name}@{tile}"))
        return f"{self.end}@tile{tile}"

    def _has_rows(self, name: str, made: Collection[str]) -> bool:
        return name in made or name == self.stage[0].inputs[0]

    def _needed(self, rows: Rows) -> dict[str, Rows]:
        """Rows of each tensor that the tile needs: the hull of what its readers read."""
        needed = {self.end: rows}
        made = {node.outputs[0] for node in self.stage}
        for node in reversed(self.stage):
            if node.outputs[0] not in needed:
                continue
            wanted = _reads(node, needed[node.outputs[0]], self.shapes)
            for name in node.inputs:
                if self._has_rows(name, made):
                    part = self._within(name, wanted)
                    known = needed.get(name, part)
                    needed[name] = min(known[0], part[0]), max(known[1], part[1])
        return needed

    def _within(self, name: str, rows: Rows) -> Rows:
        return max(0, rows[0]), min(self.shapes[name][HEIGHT], rows[1])

    def _rows_of(self, name: str, rows: Rows, needed: Mapping[str, Rows], tile: int, *, whole: bool) -> str:
        """A tensor that holds exactly these rows of `name`, sliced if need be from the input or the tile's part."""
        base = (0, self.shapes[name][HEIGHT]) if whole else needed[name]
        source = name if whole else f"{name}@tile{tile}"
        if rows == base:
            return source
        output = f"{name}@rows{rows[0]}-{rows[1]}of{tile}"
        if output not in self.shapes:
            self._declare(output, name, rows)
            bounds = tuple(self._constant(row) for row in (rows[0] - base[0], rows[1] - base[0]))
            self._made.append(Node("Slice", (source, *bounds, self._constant(HEIGHT)), (output,), {}, output))
        return output

    def _constant(self, value: int) -> str:
        name = f"slices@{value}"
        self.constants[name] = np.asarray([value], np.int64)
        return name

    def _declare(self, name: str, like: str, rows: Rows) -> str:
        shape = list(self.shapes[like])
        shape[HEIGHT] = rows[1] - rows[0]
        self.shapes[name] = tuple(shape)
        return name

    def _attrs(self, node: Node, wanted: Rows) -> Mapping[str, Attribute]:
        if node.op != "Conv" and node.op not in SPATIAL:
            return node.attrs
        _, left, _, right = _pads(node)
        past = wanted[1] - self.shapes[node.inputs[0]][HEIGHT]
        pads = [max(0, -wanted[0]), left, max(0, past), right]
        return {**{key: value for key, value in node.attrs.items() if key != "auto_pad"}, "pads": pads}
