"""What a checkpoint holds of a network, and how it comes back: the trained tensors and the buffers
by name, the optimizer's and the schedule's own state, and a fingerprint of the frozen rest, which
the seed gives again."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from harness.errors import Damaged


def pack(tensors: dict[str, torch.Tensor]) -> dict:
    """Named tensors as a few long ones, one for each type: a file of thousands would be ten times
    as large. `unpack` is its inverse."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    types, values = {}, {}
    for name, tensor in tensors.items():
        types[name] = str(tensor.dtype).removeprefix("torch.")
        values.setdefault(types[name], []).append(tensor.detach().cpu().reshape(-1))
    flat = {kind: torch.cat(parts) for kind, parts in values.items()}
    return {"shapes": shapes, "types": types, "values": flat}


def unpack(packed: dict) -> dict[str, torch.Tensor]:
    found, used = {}, dict.fromkeys(packed["values"], 0)
    counts = dict.fromkeys(packed["values"], 0)
    for name, shape in packed["shapes"].items():
        counts[packed["types"][name]] += torch.Size(shape).numel()
    for kind, values in packed["values"].items():
        if len(values) != counts[kind]:
            raise Damaged(f"it holds {len(values)} values where its names need {counts[kind]}")
    for name, shape in packed["shapes"].items():
        kind, n = packed["types"][name], torch.Size(shape).numel()
        start = used[kind]
        used[kind] += n
        found[name] = packed["values"][kind][start : start + n].reshape(shape)
    return found


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a network keeps beside its parameters: running statistics, and how many batches made
    them."""
    kept = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in kept.items() if not isinstance(tensor, nn.Parameter)}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def fingerprint(model: nn.Module) -> torch.Tensor:
    """Sum and sum of magnitudes of each frozen tensor, float64 (n, 2): tells random starts apart,
    and ignores their last bits, in which processors differ."""
    frozen = (p.detach().cpu().double() for p in model.parameters() if not p.requires_grad)
    sums = [(values.sum().item(), values.abs().sum().item()) for values in frozen]
    return torch.tensor(sums, dtype=torch.float64).reshape(-1, 2)


def state(model: nn.Module, frozen: torch.Tensor, optimizer=None, scheduler=None) -> dict:
    """What a checkpoint holds of a network with the fingerprint `frozen`, and of an unfinished run
    also the optimizer's state and the schedule's."""
    content = {
        "fingerprint": frozen,
        "trained": pack(trained(model)),
        "buffers": pack(buffers(model)),
    }
    if optimizer:
        schedule = scheduler.state_dict() if scheduler else {}
        content |= {"optimizer": optimizer.state_dict(), "scheduler": schedule}
    return of_python(content)


def of_python(content):
    """`content` with Python's numbers for NumPy's, as of a schedule of one's own, which PyTorch
    would refuse to read again."""
    if isinstance(content, dict):
        return {key: of_python(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(of_python, content))
    return content.item() if isinstance(content, np.generic) else content


@torch.no_grad()
def restore(model: nn.Module, content: dict, optimizer=None, scheduler=None) -> None:
    """Puts a checkpoint into a network at its random start, of which the same is trained. Raises
    Damaged, and has changed nothing, where it does not fit."""
    expected, found = content["fingerprint"], fingerprint(model)
    if expected.shape != found.shape or bool(
        ((expected - found).abs() > 1e-5 * expected[:, 1:]).any()
    ):
        raise Damaged("its frozen weights are not those that the seed gives here")
    if content["version"] == 1:
        content = as_version_2(content, model, optimizer)
    places = trained(model) | buffers(model)
    values = unpack(content["trained"]) | unpack(content["buffers"])
    other = sorted(set(values) ^ set(places))
    if other:
        raise Damaged(f"the network and it do not both have {other[0]}")
    for name, value in values.items():
        if value.shape != places[name].shape:
            raise Damaged(
                f"its {name} is {list(value.shape)}, the network's {list(places[name].shape)}"
            )
    if optimizer:
        check_moments(content["optimizer"], optimizer)
        schedule = dict(content["scheduler"])
        optimizer.load_state_dict(content["optimizer"])
        if scheduler:
            scheduler.load_state_dict(schedule)
    for name, value in values.items():
        places[name].copy_(value)


def check_moments(state: dict, optimizer) -> None:
    """Raises Damaged where the state of an optimizer of PyTorch's is not of the tensors it trains.
    What form that of one's own has we do not know."""
    if not type(optimizer).__module__.startswith("torch.optim"):
        return
    tensors = held_by(optimizer)
    if not set(state["state"]) <= set(range(len(tensors))):
        raise Damaged("its optimizer trains other tensors")
    for number, moments in state["state"].items():
        for key, value in moments.items():
            if torch.is_tensor(value) and not fits(value.shape, tensors[number].shape):
                raise Damaged(f"its optimizer's {key} is {list(value.shape)}")


def held_by(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """What an optimizer trains, in the order in which its state numbers them."""
    return list(itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups))


def fits(moment: torch.Size, tensor: torch.Size) -> bool:
    """Whether a moment can be of a tensor: a number, or of its shape but for averages over
    dimensions, as Adafactor's."""
    pairs = zip(moment, tensor, strict=False)
    return not moment or (len(moment) == len(tensor) and all(m in (1, n) for m, n in pairs))


# ---------------------------------------------------------------------------------------- version 1


def as_version_2(content: dict, model: nn.Module, optimizer) -> dict:
    """Version 1 named nothing: its vectors are in the order of the network's own."""
    kept = buffers(model)
    statistics = {name: tensor for name, tensor in kept.items() if tensor.is_floating_point()}
    counted = {
        name: torch.tensor(int(content["batches"])) for name in kept if name not in statistics
    }
    tensors = trained(model)
    found = content | {
        "trained": pack(like(content["trained"], tensors)),
        "buffers": pack(like(content["statistics"], statistics) | counted),
    }
    if optimizer:
        params = held_by(optimizer)
        moments = {i: {} for i in range(len(params))}
        for key, vector in content["optimizer"].items():
            shapes = [torch.empty(()) if key == "step" else p for p in params]
            for i, value in like(vector, dict(enumerate(shapes))).items():
                moments[i][key] = value
        groups = optimizer.state_dict()["param_groups"]
        groups = [
            group | {"lr": float(lr)} for group, lr in zip(groups, content["lr"], strict=True)
        ]
        found["optimizer"] = {"state": moments, "param_groups": groups}
    return found


def like(vector: torch.Tensor, tensors: dict) -> dict:
    """The values of `vector` in the shapes, types and memory order of `tensors`."""
    sizes = [tensor.numel() for tensor in tensors.values()]
    if vector.numel() != sum(sizes):
        raise Damaged(f"it holds {vector.numel()} values where the network has {sum(sizes)}")
    pieces = zip(tensors.items(), vector.split(sizes), strict=True)
    return {key: torch.empty_like(t).copy_(values.view(t.shape)) for (key, t), values in pieces}
