"""What the words of --train mean for a network, and what its trainable parameters are called."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import parametrize

from harness.entries import RandomEntries
from harness.errors import UserError
from harness.norms import BATCHNORM, NORMS
from harness.zoo import DEPTHS

if TYPE_CHECKING:
    from harness.config import Settings

# Those whose weight has a row for each output channel; of a transposed convolution it has none.
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """Every normalisation that has a γ, by name, in the order of the network."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, NORMS)}
    return {name: layer for name, layer in found.items() if layer.weight is not None}


@dataclass
class Origin:
    """What is known of a network: `freeze` draws random entries from its seed, `fit` records its
    name and what of it is trained."""

    seed: int
    name: str = ""  # of a network of one's own; empty for those of --arch
    read: dict | None = None  # the settings that it was made of; None: a script has built it itself
    flags: dict = field(default_factory=dict)  # --arch, --depth, --width, where `name` is recorded
    left_trainable: frozenset[str] = frozenset()  # by `freeze`, names of parameters
    called: str = ""  # what these are called

    @classmethod
    def of(cls, model: nn.Module, args: Settings, read: dict, build: Callable | None) -> Origin:
        """Of a network that was made of the settings `read`, by a `build` of one's own or not. One
        of one's own is called as the script's own --arch says, else as its function or class. (The
        MLPs, LeNet-5 and transformers of our own scripts are no networks of one's own.)"""
        known = cls(args.seed, read=read)
        if build and args.arch in DEPTHS:
            name = getattr(build, "__name__", "<lambda>")
            known.name = type(model).__name__ if name == "<lambda>" else name
        elif build and args.process.source:
            known.name, known.read = args.arch, read | {"arch": args.arch}
        if known.name:
            known.flags = {"arch": args.arch, "depth": args.depth, "width": args.width}
        return known


def origin(model: nn.Module) -> Origin:
    """That of a network, or of the network inside it."""
    found = [module._origin for module in model.modules() if hasattr(module, "_origin")]
    if not found:  # of a network that a script has built by itself, PyTorch's seed being the run's
        found = [Origin(torch.initial_seed(), type(model).__name__.lower())]
        model._origin = found[0]
    return found[0]


def owned(model: nn.Module):
    """The name of every parameter, as it was before `RandomEntries` took entries out of it, the
    module that it belongs to, and the parameter."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        name = name.replace(".parametrizations.weight.original", ".weight")
        yield name, modules[name.rpartition(".")[0]], parameter


def is_shortcut(name: str) -> bool:
    return "shortcut" in name or "downsample" in name


def is_bias(name: str) -> bool:
    """Whether a parameter is an additive vector, by its name: `bias`, `in_proj_bias` of attention,
    `bias_ih_l0` of a recurrent layer."""
    own = name.rpartition(".")[2]
    return own.endswith("bias") or own.startswith("bias_")


def output_layer(model: nn.Module) -> nn.Module | None:
    """The head: what the network calls `output`, else its last linear layer."""
    if isinstance(getattr(model, "output", None), nn.Module):
        return model.output
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return linear[-1] if linear else None


def head_of(model: nn.Module) -> set[nn.Module]:
    """The head, and the modules that it is made of."""
    head = output_layer(model)
    return set() if head is None else set(head.modules())


def inner_layers(model: nn.Module) -> list[nn.Module]:
    """Those of which --train random:K takes entries: what the network calls its `inner_layers`,
    else every convolution, but transposed ones, and every linear layer but the head."""
    if hasattr(model, "inner_layers"):
        return model.inner_layers
    layers, head = model.modules(), head_of(model)
    return [m for m in layers if isinstance(m, LAYERS) and m not in head]


def part_of(name: str, module: nn.Module, head: set) -> str:
    """The one part of a network that a parameter belongs to. `input` and `position` are what the
    network itself calls so."""
    if isinstance(module, RandomEntries):
        return "random"
    if isinstance(module, NORMS):
        return "beta" if name.endswith("bias") else "gamma"
    if module in head:
        return "output"
    if name.startswith("input."):
        return "input"
    if name == "position":
        return "position"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "shortcut" if is_shortcut(name) else "conv"
    return "hidden" if isinstance(module, nn.Linear) else "other"


# the words of --train but all, none and all-WORD, as they are put in order
ORDER = "bn norm gamma beta random bias output input position shortcut conv hidden".split()


def parts(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of each part that the network has, by name: all of them, each once."""
    found, head = {part: {} for part in (*ORDER, "other")}, head_of(model)
    for name, module, parameter in owned(model):
        found[part_of(name, module, head)][name] = parameter
    return {part: parameters for part, parameters in found.items() if parameters}


def words(model: nn.Module) -> dict[str, set[str]]:
    """What each word of --train means for a network: names of parameters."""
    found = {
        part: set(names) for part, names in parts(model).items() if part not in ("random", "other")
    }
    everything = {name for name, module, _ in owned(model) if not isinstance(module, RandomEntries)}
    batch = {name for name, module, _ in owned(model) if isinstance(module, BATCHNORM)}
    norm = found.get("gamma", set()) | found.get("beta", set())
    bias = {name for name in everything if is_bias(name)}
    found |= {"bn": batch, "norm": norm, "bias": bias}
    found = {word: names for word, names in found.items() if names}
    others = {f"all-{word}": everything - names for word, names in found.items()}
    return found | others | {"all": everything, "none": set()}


OWN_NORM = " (a normalisation of one's own inherits from one of PyTorch's or from ScaleShift)"
RANDOM = re.compile(r"random:([1-9]\d*|all)")


def names_of(model: nn.Module, train: str) -> set[str]:
    """The names that `train` means. Raises UserError for a word that the network does not know."""
    if not isinstance(train, str):
        raise UserError(f"freeze takes words of --train or a predicate, not {train!r:.60}")
    meanings, chosen = words(model), set()
    entries = [word for word in train.split("+") if RANDOM.fullmatch(word)]
    for word in train.split("+"):
        if word not in (*meanings, *entries):
            known = ", ".join(known for known in meanings if not known.startswith("all-"))
            raise UserError(
                f"--train {train}: {word!r} is no part of this network: give of {known}, all-WORD "
                "and random:K (K = 1, 2, …, all) those to train, joined with +"
                + ("" if meanings.get("norm") else OWN_NORM)
            )
        chosen |= meanings.get(word, set())
    if len(entries) > 1:
        raise UserError(f"--train {train}: give one random:K, of as many entries as all")
    inner = set(inner_layers(model)) if entries else ()
    for name, module, _ in owned(model):
        if name in chosen and name.endswith(".weight") and module in inner:
            why = f"{entries[0]} is of weights that are frozen otherwise, and {name} is trained"
            raise UserError(f"--train {train}: {why}")
    return chosen


def check_name(called: str) -> None:
    """Raises UserError where a predicate is to be called by words that mean something else, or by
    what is no text."""
    if not isinstance(called, str):
        raise UserError(f"called={called!r:.60} is no name: give the predicate one, as text")
    given = {word.removeprefix("all-").partition(":")[0] for word in called.split("+")}
    if given <= {"all", "none", *ORDER}:
        raise UserError(f"called={called!r} is a word of --train: give the predicate another name")


def note_start(model: nn.Module) -> None:
    """Notes on every parameter that starts as --weight-init, --gamma-init or --beta-init say which
    of these it is, and how it has started: `redrawn` looks whether it still is so. A layer whose
    weight has another name starts as its constructor draws it: of that, nothing is noted."""
    for _, module, parameter in owned(model):
        named = parametrize.is_parametrized(module, "weight") or module._parameters.get("weight")
        if isinstance(module, NORMS):
            setting = "beta_init" if parameter is getattr(module, "bias", None) else "gamma_init"
        elif isinstance(module, LAYERS):
            setting = "weight_init"
        else:
            continue
        parameter.started = setting, digest_of_values(parameter) if named is not None else None


def redrawn(model: nn.Module) -> set[str]:
    """Of --weight-init, --gamma-init and --beta-init those that are no longer true, since a script
    has drawn over what `note_start` saw."""
    noted = [(p, *p.started) for p in model.parameters() if hasattr(p, "started")]
    return {setting for p, setting, digest in noted if digest_of_values(p) != digest}


def digest_of_values(tensor: torch.Tensor) -> bytes:
    """Of the values bit for bit, however they lie in memory, where a sum would round otherwise."""
    values = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(values.view(torch.uint8).numpy()).digest()


def trainable(model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, _, parameter in owned(model) if parameter.requires_grad)


def spelling(train: str) -> str:
    """The one spelling of words of --train, as far as it does not depend on the network."""
    given = list(dict.fromkeys(train.split("+")))
    if {"gamma", "beta"} <= set(given):
        given = ["norm", *(word for word in given if word not in ("gamma", "beta"))]

    def rank(word: str) -> int:
        kind = word.partition(":")[0]
        return ORDER.index(kind) if kind in ORDER else len(ORDER)

    return "+".join(sorted(given, key=rank))


def entries_of(model: nn.Module) -> str:
    """The word random:K of a network that trains random entries; else empty."""
    found = [f"random:{m.per_channel}" for m in model.modules() if isinstance(m, RandomEntries)]
    return found[0] if found else ""


def trained_as(model: nn.Module) -> str:
    """What is trainable, in words of --train where it is exactly what they mean (`bn+output`); else
    as `freeze` was told to call it (`beta of the first stage`); else `custom-` and a hash of the
    names."""
    now, meanings, known = trainable(model), words(model), origin(model)
    for word in ("all", "none", "all-bn", "all-norm"):
        if now == meanings.get(word):
            return word
    whole, covered = [], set()
    for part, parameters in parts(model).items():
        if now >= set(parameters):
            whole.append(part)
            covered |= set(parameters)
    own = known.called if now == known.left_trainable else ""
    if "other" in whole and own and not set(own.split("+")) <= set(meanings):
        return own  # of a predicate: "other" is no word
    if covered == now:
        if "random" in whole:
            whole[whole.index("random")] = entries_of(model)
        if {"gamma", "beta"} <= set(whole):
            only_batch = meanings["norm"] == meanings.get("bn")
            rest = [part for part in whole if part not in ("gamma", "beta")]
            whole = ["bn" if only_batch else "norm", *rest]
        return "+".join(whole)
    for word, names in meanings.items():
        if now == names:
            return word
    if own:
        return own
    return "custom-" + hashlib.sha256("\n".join(sorted(now)).encode()).hexdigest()[:6]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many are trained, and how many there are: what `RandomEntries` has taken out counts where
    it was."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    there = [p.numel() for _, module, p in owned(model) if not isinstance(module, RandomEntries)]
    return trained, sum(there)
