"""A base model in memory: its graph at the size asked for, and the head the data need."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.card import IMAGE_CLASSIFICATION, ModelCard
from agent.engine.checks import OUTPUT, check_base
from agent.engine.ir import Graph, parse, shapes
from agent.engine.passes import replace_head, unshare_parameters
from agent.engine.prepare import prepare
from agent.errors import ModelError, SpecError

CHANNELS_FIRST_RANK, COLORS = 3, 3
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A parsed, checked base.

    Attributes:
        graph: batch-norm folded; of an image model the input shape is set to the job's image size.
        card: what the publisher says of it.
    """

    graph: Graph
    card: ModelCard


def load_base(plaintext: bytes, card: ModelCard, image_size: int) -> BaseModel:
    """Parse an unsealed model and check it against its card.

    Raises:
        ModelError: not a model this version can train, or it does not match its card.
    """
    graph = parse(plaintext)
    check_base(graph.nodes, graph.layers(), graph.initializers, graph.opset)
    if graph.input_shape != tuple(card.input_shape):
        raise ModelError(
            f"the model takes {list(graph.input_shape)}, its card says {list(card.input_shape)}", where=card.name
        )
    if card.task == IMAGE_CLASSIFICATION:
        sized = _sized(graph, card, image_size)
        outputs = shapes(sized, 1)[sized.output]
        if card.labels and outputs != (1, len(card.labels)):
            raise ModelError(
                f"the model has outputs {list(outputs)}, its card names {len(card.labels)} labels",
                where=card.name,
                reason=OUTPUT,
            )
        if len(outputs) != 2:  # noqa: PLR2004 - [N, classes]
            raise ModelError(f"the model has outputs {list(outputs)}, not [N, classes]", where=card.name, reason=OUTPUT)
    else:
        sized = graph
        check_window_outputs(graph, card)
    return BaseModel(unshare_parameters(prepare(sized)), card)


def _sized(graph: Graph, card: ModelCard, image_size: int) -> Graph:
    if len(graph.input_shape) != CHANNELS_FIRST_RANK:
        raise ModelError("the model does not take images [N, C, H, W]", where=card.name)
    if graph.input_shape[0] != COLORS:
        raise ModelError(f"the model takes {graph.input_shape[0]} channels, images have {COLORS}", where=card.name)
    return replace(graph, input_shape=(graph.input_shape[0], image_size, image_size))


def check_window_outputs(graph: Graph, card: ModelCard) -> None:
    """An autoencoder gives what it takes, a forecaster one value for each row of its horizon.

    Raises:
        ModelError: other outputs.
    """
    assert card.windows is not None
    horizon = card.windows.horizon
    expected = (1, horizon) if horizon else (1, *graph.input_shape)
    outputs = shapes(graph, 1)[graph.output]
    if outputs != expected:
        raise ModelError(
            f"the model has outputs {list(outputs)}, {card.task} by its card needs {list(expected)}",
            where=card.name,
            reason=OUTPUT,
        )


def choose_head(wanted: str, classes: tuple[str, ...], known: tuple[str, ...]) -> str:
    """`keep` or `replace`, from what the job asks (`auto`, `keep`, `replace`) and the classes data and model have.

    Raises:
        SpecError: `keep` was asked for and the data have classes unknown to the model; names them.
    """
    unknown = [name for name in classes if name not in set(known)]
    if wanted == "keep" and unknown:
        raise SpecError(
            f"labels unknown to the model: {', '.join(unknown[:MOST_NAMED])}",
            where=f"{len(unknown)} of {len(classes)} classes",
            fix='Ask for `head = "replace"`, or rename the class folders to labels of the model',
        )
    if wanted == "auto":
        return "replace" if unknown else "keep"
    return wanted


def with_head(base: BaseModel, head: str, classes: tuple[str, ...], seed: int) -> tuple[Graph, tuple[str, ...]]:
    """The graph to train and its class names in output order."""
    if head == "keep":
        return base.graph, base.card.labels
    return replace_head(base.graph, len(classes), seed), classes
