"""The optimisation loop of every training: AdamW, falling learning rate, averaged weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..core.distributed import ALONE, Processes
from .losses import Losses
from .optimizer import adamw
from .resume import ResumeFile, TrainingState
from .rng import NETWORK, seed_of

Draw = Callable[[int], tuple[Tensor, ...]]
Loss = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How to optimise. The learning rate falls linearly to zero, as for the paper's classifiers.

    A batch is the data of one step for all processes together. Each process splits its share into
    `accumulate` parts, which only saves memory.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    ema: float = 0.999
    seed: int = 0
    bf16: bool = False
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must fit into 64 bits.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be at least 0 and below 1.")


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """The device and the callbacks of a training.

    on_step(step, loss) is called after each step, in order; on a GPU a few steps later. If it
    raises, the training ends and its state is kept. validate(network) returns {"loss": ..., ...}
    for the averaged network, every `validate_every` steps; the training stops if this loss has not
    fallen `patience` times in a row (0: off). show(network, step) gets the averaged network every
    `show_every` steps (0: never).
    """

    title: str = "train"
    device: str = "cpu"
    processes: Processes = ALONE
    resume: ResumeFile | None = None
    on_step: Callable[[int, float], None] | None = None
    validate: Callable[[nn.Module], dict[str, Any]] | None = None
    validate_every: int = 100
    patience: int = 0
    show: Callable[[nn.Module, int], None] | None = None
    show_every: int = 0


@dataclass(frozen=True)
class Trained:
    """The averaged network in eval mode, the loss of each step, and the validation results."""

    network: Any
    losses: list[float]
    validations: list[dict[str, Any]]

    @property
    def loss(self) -> float:
        """The mean loss of the last 200 steps."""
        last = self.losses[-200:]
        return sum(last) / len(last)


def optimise(
    network: nn.Module,
    draw: Draw,
    loss: Loss,
    recipe: OptimizerConfig,
    run: TrainingContext | None = None,
) -> Trained:
    """`recipe.steps` steps on loss(network, *draw(step)).

    draw(step) returns tensors with one row per image of the batch; loss is a mean over rows. Raises
    ValueError if memory is short or a batch cannot be split between the processes.
    """
    run = run or TrainingContext()
    run.processes.check(recipe.batch_size, recipe.accumulate)
    average = copy.deepcopy(network).eval().requires_grad_(False)
    rates = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    optimizer = adamw(network, torch.device(run.device), **rates)
    state = TrainingState(network, average, optimizer)
    if run.resume is not None and run.resume.read_into(state) and run.processes.first:
        print(f"{run.title} goes on from step {state.step}.")
    losses = Losses(state)
    with _kept_and_explained(losses, recipe, run), torch.random.fork_rng():
        _steps(losses, draw, loss, recipe, run)
    return Trained(average, state.losses, state.validations)


def _steps(
    losses: Losses, draw: Draw, loss: Loss, recipe: OptimizerConfig, run: TrainingContext
) -> None:
    state = losses.state
    network = run.processes.wrapped(state.network)
    network.train()
    bar = tqdm(
        total=recipe.steps,
        initial=state.step,
        desc=run.title,
        unit="step",
        mininterval=1.0,
        disable=not run.processes.first,
    )
    with bar:
        while state.step < recipe.steps and not _stopped_improving(state, run):
            _one_step(losses, network, draw, loss, recipe, run)
            looks = _validates(state.step, recipe, run) or _shows(state.step, recipe, run)
            file = run.resume if run.processes.first else None
            saves = file is not None and file.due
            # what is looked at or saved is no further than the losses that are known
            ends = looks or saves or state.step == recipe.steps
            losses.read(0 if ends else losses.late)
            if losses.failure is None:
                _look(state, recipe, run)
            _report(losses, bar, run)
            _check(losses, recipe)
            if file is not None and saves:
                file.save(state)


def _one_step(
    losses: Losses,
    network: nn.Module,
    draw: Draw,
    loss: Loss,
    recipe: OptimizerConfig,
    run: TrainingContext,
) -> None:
    """Forward, backward, and the update of weights and average unless the loss is not finite."""
    state = losses.state
    # random numbers on the device, only used by the network's dropout
    torch.manual_seed(seed_of(recipe.seed, NETWORK, state.step, run.processes.rank))
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.learning_rate * (1 - state.step / recipe.steps)
    state.optimizer.zero_grad(set_to_none=True)
    share = [run.processes.share(values) for values in draw(state.step)]
    parts = list(zip(*(values.tensor_split(recipe.accumulate) for values in share), strict=True))
    total = torch.zeros((), device=run.device)
    for number, part in enumerate(parts):
        with _gradient_sync(network, number == len(parts) - 1):
            rows = [values.to(run.device) for values in part]
            with torch.autocast(torch.device(run.device).type, torch.bfloat16, enabled=recipe.bf16):
                value = loss(network, *rows) / len(parts)
            value.backward()
        total += value.detach()
    losses.add(run.processes.mean(total))
    if losses.failure is not None:
        return
    state.whole = False
    state.optimizer.step()
    decay = min(recipe.ema, (1 + state.step) / (10 + state.step))
    _average(state.average, state.network, decay, losses.stopped)
    state.step += 1
    state.whole = True


def _gradient_sync(network: nn.Module, last: bool) -> Any:
    """Averages gradients over the processes once, after the last part."""
    no_sync = getattr(network, "no_sync", None)
    return contextlib.nullcontext() if last or no_sync is None else no_sync()


def _validates(step: int, recipe: OptimizerConfig, run: TrainingContext) -> bool:
    """Whether a validation follows this step: when it is due, and after the last step."""
    return run.validate is not None and (step == recipe.steps or step % run.validate_every == 0)


def _shows(step: int, recipe: OptimizerConfig, run: TrainingContext) -> bool:
    """The same for `show`."""
    if run.show is None or not run.show_every:
        return False
    return step == recipe.steps or step % run.show_every == 0


def _look(state: TrainingState, recipe: OptimizerConfig, run: TrainingContext) -> None:
    """Validates and shows the averaged network when it is due."""
    step, first = state.step, run.processes.first
    if run.validate is not None and _validates(step, recipe, run):
        seen = run.validate(state.average) if first else None
        state.validations.append({"step": step} | run.processes.from_first(seen))
    if run.show is not None and first and _shows(step, recipe, run):
        run.show(state.average, step)


def _report(losses: Losses, bar: Any, run: TrainingContext) -> None:
    """Tells the progress bar and `on_step` of the losses that were read."""
    for step, value in losses.news():
        recent = losses.state.losses[max(step - 100, 0) : step]
        bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", refresh=False)
        bar.update()
        if run.on_step is not None:
            run.on_step(step, value)


def _check(losses: Losses, recipe: OptimizerConfig) -> None:
    """Raises ValueError after a loss that is not finite."""
    if losses.failure is not None:
        raise ValueError(
            f"The loss is {losses.failure} at step {losses.state.step}, so the weights before it "
            f"are kept; lower learning_rate ({recipe.learning_rate:g}), train in fp32, or look for "
            "images or latents that are not finite."
        )


def _stopped_improving(state: TrainingState, run: TrainingContext) -> bool:
    """Whether the validation loss has not improved for too long."""
    losses = [seen["loss"] for seen in state.validations]
    return 0 < run.patience < len(losses) - losses.index(min(losses)) if losses else False


@contextlib.contextmanager
def _kept_and_explained(
    losses: Losses, recipe: OptimizerConfig, run: TrainingContext
) -> Iterator[None]:
    """Keeps the state of a cancelled or failed training, and says when memory was short."""
    state, begun = losses.state, losses.state.step
    try:
        yield
    except BaseException as error:
        if run.resume is not None and run.processes.first and state.whole:
            losses.settle()
            if state.step > begun:
                run.resume.save(state)
        failed = isinstance(error, RuntimeError) and "allocate memory" in str(error)
        if not failed and not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise
        raise ValueError(
            f"batch_size {recipe.batch_size} in {recipe.accumulate} parts does not fit into the "
            f"memory of {run.device}; try accumulate {2 * recipe.accumulate}, or batch_size "
            f"{max(recipe.batch_size // 2, 1)}."
        ) from error


@torch.no_grad()
def _average(
    average: nn.Module, network: nn.Module, decay: float, stopped: Tensor | None = None
) -> None:
    """Moves the average towards the weights, unless `stopped` () is 1 on their device."""
    ours = [p.data for p in average.parameters()]
    theirs = [p.data for p in network.parameters()]
    if stopped is None:
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        return
    ways = torch._foreach_sub(theirs, ours)
    torch._foreach_mul_(ways, (1 - stopped) * (1 - decay))
    torch._foreach_add_(ours, ways)
