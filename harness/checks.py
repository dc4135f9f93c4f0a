"""What a script's own network, its outputs and its recipe must be, said in one line where they are
not."""

from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from harness.checkpoints import held_by
from harness.errors import UserError


def check_recipe(model: nn.Module, made) -> None:
    """Raises UserError for what is no recipe; where an optimizer does not hold what is trainable,
    as the records say it is, or needs more than its gradients; and where a scheduler is of another
    one, or needs more than the number of epochs."""
    if not hasattr(made, "scheduler"):
        what = type(made).__name__
        raise UserError(f"a recipe returns common.Recipe or common.scheduled(…), not a {what}")
    optimizer, scheduler = made.optimizer, made.scheduler
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserError("LBFGS calculates a step's loss several times, and the training loop once")
    check_inner_optimizers(optimizer)
    if scheduler and (
        isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler)
    ):
        what = f"a {type(scheduler).__name__} is not stepped by the number of epochs alone"
        raise UserError(f"{what}: give another scheduler of torch.optim.lr_scheduler")
    if scheduler and scheduler.optimizer is not optimizer:
        raise UserError("the recipe's scheduler is that of another optimizer")
    held = set(held_by(optimizer)) if optimizer else ()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter not in held:
            what = f"{name} is trainable, and the recipe's optimizer does not hold it"
            raise UserError(f"{what}: freeze it, or give the optimizer all that freeze has left")


def check_inner_optimizers(optimizer) -> None:
    """Raises UserError where an optimizer has another inside (SAM's base optimizer, Lookahead's),
    whose moments its `state_dict` leaves out: a run that goes on would end with other digits."""
    if getattr(type(optimizer), "state_dict", None) is not torch.optim.Optimizer.state_dict:
        return
    for name, inner in vars(optimizer).items():
        if isinstance(inner, torch.optim.Optimizer):
            what = f"{type(optimizer).__name__} keeps another optimizer, {name}, whose state its"
            instead = "give it a state_dict and a load_state_dict that do"
            raise UserError(f"{what} state_dict() does not have: {instead}")


def materialise(model: nn.Module, size: tuple[int, ...]) -> None:
    """Gives the lazy layers of a network (nn.LazyLinear, …) their shapes, by one pass over two
    black images of `size`, height, width, channels, or two rows of a table of so many columns.
    Raises UserError for what is no network."""
    if not isinstance(model, nn.Module):
        raise UserError(f"the network is a {type(model).__name__}: build returns an nn.Module")
    if any(nn.parameter.is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        *height_and_width, channels = size
        with torch.no_grad():  # in eval(): no statistics move
            model.eval()(torch.zeros(2, channels, *height_and_width))
        model.train()


@contextmanager
def explained(model: nn.Module, x: torch.Tensor):
    """Within it what a forward pass of a batch `x` can fail by says what would be right, as a
    UserError."""
    try:
        yield
    except ValueError as error:
        if not model.training or len(x) > 1 or "more than 1 value" not in str(error):
            raise
        need = "where an image has one pixel left that is two images"
        instead = "give --batch-size 2 or more, and two training images"
        told = f"BatchNorm needs two values of each channel, and {need}: {instead}"
        raise UserError(told) from error
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        what = "an image's channels come last in memory, so that view() cannot flatten it"
        raise UserError(f"{what}: give x.flatten(1)") from error


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean over a batch: logits float (B, classes), y int64 (B,)."""
    try:
        return F.cross_entropy(logits, y)
    except IndexError:
        outputs = f"the network makes {logits.shape[1]} numbers of an image"
        told = f"{outputs}, and there are more classes: it has to make one for each"
        raise UserError(told) from None


def as_logits(output) -> torch.Tensor:
    """A network's output in fp32. Raises UserError where it is not one tensor (N, classes)."""
    is_tensor = isinstance(output, torch.Tensor)
    if is_tensor and output.dim() == 2:
        return output.float()
    found = f"tensor of shape {tuple(output.shape)}" if is_tensor else type(output).__name__
    raise UserError(f"the network returns a {found}: it has to return one tensor (N, classes)")
