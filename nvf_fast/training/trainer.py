"""One training step, and the tensors that it updates."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from nvf_fast.baselines import Network, build
from nvf_fast.runtime.processes import Processes
from nvf_fast.training.config import TrainingConfig
from nvf_fast.training.loader import mixed_seed
from nvf_fast.training.losses import AuxiliaryHead
from nvf_fast.training.objectives import objective_of


class Trainer:
    """A network with its averaged weights, its optimiser and the number of steps they have made.

    Args:
        config: every number of the training.
        images: size of the data set.
        device: where to train.
        processes: that divide each batch; each takes every `processes.count`-th part.

    Raises:
        ValueError: the processes do not divide the batch's parts, or the data set is smaller than a batch.
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
        if self.options.precision == "bfloat16" and device.type == "cpu" and not _has_bfloat16():
            # The small preset on one core without: 1.2 s an image in bfloat16, 0.08 s in float32.
            warnings.warn("this processor emulates bfloat16; precision 'float32' is many times faster here")
        self.step, self.total = 0, self.options.total_steps(images)
        self.own = range(processes.rank, self.options.parts, processes.count)

        torch.manual_seed(mixed_seed(config.seed, "weights"))
        model = build(config.model)
        averaged = copy.deepcopy(model)
        self.auxiliary = (
            AuxiliaryHead(config.model.width).to(device) if config.losses.auxiliary_weight else None
        )
        # GroupNorm's backward on a CPU is 4 to 12 times as slow with channels last as without, in bfloat16.
        grouped = config.model.encoder == "hourglass"
        layout = torch.contiguous_format if grouped and device.type == "cpu" else torch.channels_last
        self.model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.averaged = averaged.to(device, memory_format=layout).eval()  # type: ignore[call-overload]
        self.parameters = [*self.model.parameters(), *(self.auxiliary.parameters() if self.auxiliary else ())]
        self.optimiser = _optimiser(self.parameters, config)
        self.objective = objective_of(config, device, layout)
        losses = self.objective.losses
        self._losses = torch.compile(losses) if self.options.compile else losses

    def update(self, parts: list[Any], stop: bool = False) -> tuple[dict[str, Tensor], bool]:
        """Make one training step.

        Args:
            parts: this process's parts of the batch, as the loader yields them.
            stop: whether this process requests a stop after the step.

        Returns:
            The losses () by name, means over the processes, and whether any process requests a stop.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        terms = self._losses(self.model, self.auxiliary, self.batch(parts))
        self.optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        terms = {name: value.detach() for name, value in terms.items()}
        if self.processes.count > 1:
            stopping = terms["loss"].new_tensor(float(stop))
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            self.processes.average([*gradients, *terms.values(), stopping])
            stop = bool(stopping > 0)
        if self.options.clip_norm is not None:
            terms["gradient_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        self.optimiser.step()
        self.step += 1
        if self.options.ema is not None:
            self._average_weights(self.options.ema)
        return terms, stop

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

    def batch(self, parts: list[Any]) -> Any:
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
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and len(state["random"]["cuda"]):
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)

    @torch.no_grad()
    def _average_weights(self, decay: float) -> None:
        decay = min(decay, self.step / (self.step + 20))  # the first weights are soon forgotten
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)
        for average, value in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            average.lerp_(value, 1 - decay)


def _optimiser(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    options = config.optimisation
    if options.optimiser == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=options.learning_rate)
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))


def _has_bfloat16() -> bool:
    """Whether PyTorch's convolutions run in bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
