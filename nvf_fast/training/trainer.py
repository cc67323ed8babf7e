"""One training step, and the tensors that it updates."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Iterable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from nvf_fast.baselines import Network, build
from nvf_fast.runtime.cuda_graph import CudaRecorder, GraphedFunction, Recorder
from nvf_fast.runtime.processes import Processes
from nvf_fast.training.config import TrainingConfig
from nvf_fast.training.loader import mixed_seed
from nvf_fast.training.losses import AuxiliaryHead
from nvf_fast.training.objectives import objective_of
from nvf_fast.training.replay import ViewStore


class Trainer:
    """A network with its averaged weights, its optimiser and the number of steps they have made.

    Where views are reused (`config.replay`), `store` holds them, and on CUDA a graph holds the whole step.

    Args:
        config: every number of the training.
        images: size of the data set.
        device: where to train.
        processes: that divide each batch; each takes every `processes.count`-th part.

    Raises:
        ValueError: the processes do not divide the batch's parts, the data set is smaller than a batch, or
            several processes would reuse views.
    """

    def __init__(
        self,
        config: TrainingConfig,
        images: int,
        device: torch.device,
        processes: Processes = Processes(),  # noqa: B008 (immutable)
    ) -> None:
        self.config, self.images, self.device, self.processes = config, images, device, processes
        self.options = config.optimisation
        if self.options.parts % processes.count:
            raise ValueError(
                f"{processes.count} processes do not divide the {self.options.parts} parts of a batch"
            )
        reuses = config.replay.uses > 1
        if reuses and processes.count > 1:
            raise ValueError(
                f"only one process can reuse views, got {processes.count} processes: set replay.uses to 1"
            )
        if self.options.precision == "bfloat16" and device.type == "cpu" and not _has_bfloat16():
            # The small preset on one core without: 1.2 s an image in bfloat16, 0.08 s in float32.
            warnings.warn("this processor emulates bfloat16; precision 'float32' is many times faster here")
        self.step, self.total = 0, self.options.total_steps(images)
        self.own = range(processes.rank, self.options.parts, processes.count)

        torch.manual_seed(mixed_seed(config.seed, "weights"))
        model = build(config.model)
        averaged = copy.deepcopy(model)
        self.auxiliary: AuxiliaryHead | None = None
        if config.losses.auxiliary_weight:
            self.auxiliary = AuxiliaryHead(config.model.width).to(device)
        # GroupNorm's backward on a CPU is 4 to 12 times as slow with channels last as without, in bfloat16.
        grouped = config.model.encoder == "hourglass"
        layout = torch.contiguous_format if grouped and device.type == "cpu" else torch.channels_last
        self.model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.averaged = averaged.to(device, memory_format=layout).eval()  # type: ignore[call-overload]
        self.parameters = [*self.model.parameters(), *(self.auxiliary.parameters() if self.auxiliary else ())]
        self.optimiser = _optimiser(self.parameters, config, reuses and device.type == "cuda")
        self.objective = objective_of(config, device, layout)
        losses = self.objective.losses
        self._losses = torch.compile(losses) if self.options.compile else losses
        self.store: ViewStore | None = None
        if reuses:
            self.store = ViewStore(config.replay, self.options.batch, config.views.colour, device)
        self._names: list[str] = []  # of the losses
        self._graph: GraphedFunction | None = None
        if reuses and device.type == "cuda":
            self.record_steps(CudaRecorder(device))

    def update(self, parts: Iterable[Any], stop: bool = False) -> tuple[dict[str, Tensor], bool]:
        """Make one training step.

        Args:
            parts: this process's parts of the batch, or of the views to store, as the loader yields them.
            stop: whether this process requests a stop after the step.

        Returns:
            The losses () by name, means over the processes, and whether any process requests a stop.
        """
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.learning_rate)  # a graph reads it
            else:
                group["lr"] = self.learning_rate
        if self.store is not None:
            self.store.add(parts)
            self.store.randomise(mixed_seed(self.config.seed, self.step, "stored"))
            terms = self._reusing_step()
        else:
            terms = self._differentiate(self.batch(parts))
            stop = self._average_gradients(terms, stop)
            self._descend(terms)
        self.step += 1
        if self.options.ema is not None:
            self._average_weights(self.options.ema)
        return terms, stop

    def record_steps(self, recorder: Recorder) -> None:
        """Replay the steps on stored views from a graph, captured in the first."""
        self._graph = GraphedFunction(self._stacked_step, _RestoringRecorder(recorder, self._updated))

    @property
    def graphed(self) -> bool:
        """Whether steps are replayed from a graph; a capture that failed has been logged."""
        return self._graph is not None and self._graph.captures > 0 and not self._graph.failed

    def _reusing_step(self) -> dict[str, Tensor]:
        """Make a step on stored views, from the graph if one was captured."""
        if self._graph is None:
            values = self._stacked_step("")
        else:
            values = self._graph("the training step", lambda: None, lambda output, _: output.clone())
        return dict(zip(self._names, values.unbind(), strict=True))

    def _stacked_step(self, key: Hashable) -> Tensor:
        """Make a step on stored views, without synchronising; its losses in one tensor."""
        assert self.store is not None
        terms = self._differentiate(self.store.batch())
        self._descend(terms)
        self._names = [*terms]
        return torch.stack([*terms.values()])

    def _differentiate(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a batch; parameters receive their gradients."""
        terms = self._losses(self.model, self.auxiliary, batch)
        self.optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        return {name: value.detach() for name, value in terms.items()}

    def _average_gradients(self, terms: dict[str, Tensor], stop: bool) -> bool:
        """Average gradients and losses over the processes; whether any of them requests a stop."""
        if self.processes.count == 1:
            return stop
        stopping = terms["loss"].new_tensor(float(stop))
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.processes.average([*gradients, *terms.values(), stopping])
        return bool(stopping > 0)

    def _descend(self, terms: dict[str, Tensor]) -> None:
        """Clip the gradients, whose norm joins the losses, and update the weights."""
        if self.options.clip_norm is not None:
            terms["gradient_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        self.optimiser.step()

    def _updated(self) -> list[Tensor]:
        """Every tensor that a step changes, last those that the optimiser makes, as zeros, in the first."""
        states = (self.optimiser.state.get(parameter, {}) for parameter in self.parameters)
        made = [value for state in states for value in state.values()]
        return [*self.parameters, *self.model.buffers(), *made]

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    @property
    def learning_rate(self) -> float:
        return self.options.learning_rate_at(self.step, self.images)

    @property
    def exported(self) -> Network:
        """The network for evaluation and export."""
        return self.averaged if self.options.ema is not None else self.model

    def batch(self, parts: Iterable[Any]) -> Any:
        """This process's part of the next batch, augmented and labelled."""
        seeds = (mixed_seed(self.config.seed, self.step, part) for part in self.own)
        generators = (torch.Generator(self.device).manual_seed(seed) for seed in seeds)
        return self.objective.batch(zip(parts, generators, strict=True))

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor that training updates except the optimiser's, by network."""
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "auxiliary": self.auxiliary.state_dict() if self.auxiliary else {},
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that determines the next steps, including random states."""
        cuda = self.device.type == "cuda"
        return {
            "step": self.step,
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if cuda else torch.empty(0, dtype=torch.uint8),
            },
            **self.weights(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        if self.auxiliary:
            self.auxiliary.load_state_dict(state["auxiliary"])
        # The options are the configuration's; a rate's place in memory is this device's.
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({**state["optimiser"], "param_groups": groups})
        if self._graph is not None:
            self._graph.forget()
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and len(state["random"]["cuda"]):
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)

    @torch.no_grad()
    def _average_weights(self, decay: float) -> None:
        decay = min(decay, self.step / (self.step + 20))  # the first weights are soon forgotten
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)
        if buffers := list(self.averaged.buffers()):
            torch._foreach_lerp_(buffers, list(self.model.buffers()), 1 - decay)


class _RestoringRecorder:
    """A recorder whose warm-up leaves tensors as they were, and those that it makes as zeros."""

    def __init__(self, recorder: Recorder, changed: Callable[[], list[Tensor]]) -> None:
        self._recorder, self._changed = recorder, changed
        self.finish, self.mark, self.in_order = recorder.finish, recorder.mark, recorder.in_order

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        kept = [tensor.detach().clone() for tensor in self._changed()]
        benchmark = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True  # the graph keeps the convolutions found fastest
        try:
            return self._recorder.record(run)
        finally:
            torch.backends.cudnn.benchmark = benchmark
            with torch.no_grad():
                for tensor, value in zip_longest(self._changed(), kept):
                    tensor.zero_() if value is None else tensor.copy_(value)


def _optimiser(
    parameters: list[nn.Parameter], config: TrainingConfig, graphed: bool
) -> torch.optim.Optimizer:
    """The configured optimiser; `graphed` for use in a CUDA graph, with the rate in a tensor."""
    options = config.optimisation
    rate: Any = options.learning_rate
    if graphed:
        rate = torch.tensor(rate, device=parameters[0].device)
    if options.optimiser == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=rate, capturable=graphed)
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    fused = {"fused": True, "capturable": True} if graphed else {}
    decay = options.weight_decay
    return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, betas=(0.9, 0.98), **fused)


def _has_bfloat16() -> bool:
    """Whether PyTorch's convolutions run in bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
