"""What is found out about a job before it is planned: how deep to freeze, and what is worth learning behind that."""

from __future__ import annotations

import math
from dataclasses import replace

from agent.card import IMAGE_CLASSIFICATION
from agent.cost import CostTable, cost_table
from agent.engine import choose_engine
from agent.engine.base import OptimizerSpec, TrainingSetup
from agent.engine.ir import Graph
from agent.errors import SpecError
from agent.plan import DepthChoice, Trial, first_layer
from agent.probe import Obey, parameter_gains, trial_loss
from agent.spec import FineTuneSpec
from agent.task import Task
from agent.update_plan import Learner, bias_learners, sparse_learners
from policies.freezing import choose_by_trials, snap
from policies.policy import FreezingPolicy

LEAST_TRIAL_SAMPLES = 40
"""With fewer, a trial's loss is that of ten samples or less, and says nothing."""


class Study:
    """Trials on one job's training samples.

    Attributes:
        costs: of the job's graph.
    """

    def __init__(self, spec: FineTuneSpec, graph: Graph, task: Task, threads: int, obey: Obey) -> None:
        """Nothing runs yet.

        Args:
            spec: the job.
            graph: with the head that will be trained.
            task: its labels are indices into the graph's outputs.
            threads: intra-op threads.
            obey: see `agent.probe.Obey`.
        """
        self.costs: CostTable = cost_table(graph)
        self._spec, self._graph, self._task, self._obey = spec, graph, task, obey
        self._engine = choose_engine(spec.engine)
        batch = min(spec.batch, task.train_samples)
        self._setup = TrainingSetup(graph, batch, graph.input_shape, 0, optimizer(spec), threads, task.loss)

    def depth(self, policy: FreezingPolicy) -> DepthChoice | None:
        """The depth that trials choose; `None` where there are none: another predictor, another task, too few samples.

        Raises:
            EngineError: the runtime failed.
            JobEndedError: an order ended the job.
        """
        wanted = policy.predictor == "probe" and self._spec.depth == "auto" and self._spec.update == "prefix"
        suited = self._task.name == IMAGE_CLASSIFICATION and self._task.train_samples >= LEAST_TRIAL_SAMPLES
        if not (wanted and suited):
            return None
        trials: list[Trial] = []

        def loss_at(percent: int) -> float:
            boundary = snap((*self.costs.crossing_bytes, 0), percent)
            setup = replace(self._setup, frozen_layers=boundary)
            found = trial_loss(self._engine, setup, self._task, self._spec.learning_rate, self._spec.seed, self._obey)
            if math.isfinite(found):  # JSON has no word for anything else
                trials.append(Trial(percent, found))
            return found

        percent, rule = choose_by_trials(policy, loss_at)
        return DepthChoice(percent, rule, tuple(trials)) if trials else None

    def learners(self) -> tuple[Learner, ...]:
        """What learns by the job's `update`; nothing is named where everything past the boundary does.

        Raises:
            SpecError: not even the head can learn within `update_budget`.
            EngineError: the runtime failed, or gradients are not finite.
            JobEndedError: an order ended the job.
        """
        spec, first = self._spec, first_layer(self.costs, self._spec)
        if spec.update == "prefix":
            return ()
        if spec.update == "bias":
            return bias_learners(self._graph, self.costs, first)
        gains = parameter_gains(self._engine, self._setup, self._task, spec.learning_rate, spec.seed, self._obey)
        try:
            cached = spec.cache != "off"
            return sparse_learners(self._graph, self.costs, gains, spec.update_budget, first, cached=cached)
        except ValueError as error:
            raise SpecError(
                "the budget does not even let the head learn", where="update_budget", fix="Ask for a larger share"
            ) from error


def optimizer(spec: FineTuneSpec) -> OptimizerSpec:
    """The update rule that a job asks for."""
    return OptimizerSpec(
        spec.optimizer, momentum=spec.momentum, weight_decay=spec.weight_decay, clip_norm=spec.clip_norm
    )
