"""What a run leaves behind while it trains, and how it goes on from it: a row and a checkpoint at
the end of every epoch; after the last, what γ and β have become. Of several processes the first
writes."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import nn

from harness import checkpoints, inside, processes
from harness.config import NEVER, Settings, as_plain, record_of
from harness.dataset import Data
from harness.errors import Damaged, UserError, damaged_if_malformed
from harness.files import read_checkpoint, write_table
from harness.parts import count_parameters, entries_of, norms, origin, redrawn
from harness.parts import trainable, trained_as
from harness.runs import ADDED, COLUMNS, OWN, Run, commit, is_finite, of_other_data
from harness.speed import device_name, exact_weights
from harness.telling import open_board, show


class Recorder:
    """Records the training of a network, which is at its random start, for its `run` (None in all
    processes but the first).

    test: evaluates the network on the test images."""

    def __init__(self, run: Run | None, model: nn.Module, data: Data, args: Settings, test):
        self.run, self.model, self.data, self.args, self.test = run, model, data, args, test
        self.trainable, self.frozen = trainable(model), checkpoints.fingerprint(model)
        self.board = None
        self.affine = {name: norm for name, norm in norms(model).items() if has_shift(norm)}
        self.start = {
            name: (norm.weight.detach().clone(), norm.bias.detach().clone())
            for name, norm in self.affine.items()
        }

    def resume(self, optimizer, scheduler) -> int:
        """Restores the newest checkpoint that can be used; returns its epoch, 0 where there is
        none."""
        used = []

        def restore(content):
            if is_other(content, self.data):
                raise of_other_data(self.run.csv)
            checkpoints.restore(self.model, content, optimizer, scheduler)
            used.append(content)

        done = processes.from_first(self.run and self.run.resume(restore))
        content = processes.from_first(used[0] if used else None)
        if content and not self.run:
            checkpoints.restore(self.model, content, optimizer, scheduler)
        return done

    def record(self, epoch: int, measured: dict, seconds: float, optimizer, scheduler) -> None:
        """Writes what is known after an epoch, after the last also what γ and β have become, in an
        order that a kill at any moment leaves whole: no checkpoint of an unfinished run knows more
        epochs than the rows, and of a finished one the last row comes last."""
        run, args, frozen = self.run, self.args, self.frozen
        if run is None:
            return
        self.check_unchanged(epoch)
        if args.tensorboard:
            self.board = self.board or open_board(run, epoch)
            show(self.board, epoch, measured, [norm.weight for norm in self.affine.values()])
        if not is_finite(measured):
            run.append(epoch, measured, seconds)
        elif epoch < args.epochs:
            run.append(epoch, measured, seconds)
            state = checkpoints.state(self.model, frozen, optimizer, scheduler)
            run.save(epoch, self.known() | state)
        else:
            with processes.alone():
                self.write_learned()
            run.save(epoch, self.known() | checkpoints.state(self.model, frozen))
            run.append(epoch, measured, seconds)
            run.previous.unlink(missing_ok=True)

    def check_unchanged(self, epoch: int) -> None:
        """Raises UserError where what is trainable is not what it was at the start, or what is
        frozen has moved: no record would be true of it, and no checkpoint hold it."""
        if trainable(self.model) != self.trainable:
            instead = "let the recipe hold all of it from the start, at a rate of 0 until its turn"
            raise UserError(f"what is trainable has changed in epoch {epoch}: {instead}")
        with exact_weights(self.model):
            moved = (checkpoints.fingerprint(self.model) != self.frozen).any(1).tolist()
        names = [name for name, p in self.model.named_parameters() if not p.requires_grad]
        if any(moved):
            what = f"{names[moved.index(True)]} is frozen, and has changed in epoch {epoch}"
            instead = "train it, or make it a buffer (register_buffer), which checkpoints hold"
            raise UserError(f"{what}: {instead}")

    def close(self) -> None:
        if self.board:
            self.board.close()

    def known(self) -> dict:
        """What a checkpoint says of the run, so that predict.py can build its network."""
        about = {"classes": self.data.classes, "size": self.data.size}
        about |= {"script": self.args.process.script.name}
        about |= {"entries": entries_of(self.model)}
        asked = as_plain(self.args) | origin(self.model).flags
        return what_data(self.data) | about | {"settings": asked}

    def write_learned(self) -> None:
        """RUN.bn.csv.gz, a row per channel of every normalisation with γ and β, and
        RUN.prune.csv.gz, a row per threshold below which γ is set to zero."""
        if not self.affine:
            return
        active = inside.activity(self.model, self.affine, self.test)
        learned = inside.channels(self.affine, self.start, active)
        write_table(self.run.table("bn"), inside.CHANNELS, learned)
        pruned = inside.pruned([norm.weight for norm in self.affine.values()], self.test)
        write_table(self.run.table("prune"), inside.PRUNING, pruned)


def network_columns(model: nn.Module, data: Data) -> dict:
    """Columns that tell a run from others, beside its settings."""
    trained, total = count_parameters(model)
    columns = {"params_total": total, "params_trained": trained}
    columns |= {"image_size": "x".join(map(str, data.size[:2])), "classes": len(data.classes)}
    return columns | ({"data": data.source} if data.source else {})


def machine_columns(args: Settings) -> dict:
    """Columns that may change from one start of a run to the next."""
    columns = {"device": device_name(args.device), "threads": torch.get_num_threads()}
    return columns | {"torch": torch.__version__, "commit": commit()}


def as_trained(model, data: Data, args: Settings, made, read_by_recipe: dict) -> Settings:
    """The settings as they are true of what is about to be trained, whatever was asked for: by
    these it is named and recorded."""
    truth = true_network(model, args) | data.made_with | own_starts(model, args)
    if len(data.labels["train"]) != data.loaded:  # a script has taken some, or put some in
        truth["subset"] = len(data.labels["train"])
    truth |= {"train": trained_as(model), "processes": processes.processes()}
    if made.optimizer:
        truth |= true_recipe(args, made, read_by_recipe)
    return args.but(**truth)


def true_network(model: nn.Module, args: Settings) -> dict:
    """The settings that a network was made of; of one of one's own its name as `arch`, and no depth
    and width where it was made without them. Raises UserError where it is of another seed."""
    known, made_of = origin(model), {}
    if known.read is None:  # built by the script itself: what was asked for may have had a part
        read = {*args.given, *args.varied}
        known.flags = {key: getattr(args, key) for key in ("arch", "depth", "width")}
    else:
        read = known.read.keys()
        columns = {f.name for f in dataclasses.fields(args) if record_of(f) != NEVER}
        made_of = {name: known.read[name] for name in read & columns}
        if known.seed != args.seed:
            told = f"the network is of seed {known.seed}, and fit is given seed {args.seed}"
            raise UserError(f"{told}: give both the same settings")
    if not known.name:
        return made_of
    return made_of | {"arch": known.name} | dict.fromkeys({"depth", "width"} - read)


def own_starts(model: nn.Module, args: Settings) -> dict:
    """What a copied script has drawn over since `build_model`, as `own`, or `own+ones` where what
    it has not drawn over may start as given. (Of our own scripts the names say what they are: Davis
    and Frank's linear layers start otherwise than convolutions.)"""
    if not args.process.source:
        return {}
    found = redrawn(model)
    origin(model).flags |= {setting: getattr(args, setting) for setting in found}
    asked = {setting: getattr(args, setting) for setting in found}
    usual = {setting: getattr(Settings, setting) for setting in found}
    return {key: "own" if asked[key] == usual[key] else f"own+{asked[key]}" for key in found}


def true_recipe(args: Settings, made, read: dict) -> dict:
    """What an optimizer's first group and its schedule are. Settings that the recipe has `read`
    stay as given, whatever it makes of them in one group of parameters or the other."""
    group = made.optimizer.param_groups[0]
    optimizer = type(made.optimizer).__name__.lower()
    own_schedule = type(made.scheduler).__name__ if made.scheduler else "constant"
    found = {"lr": float(group.get("initial_lr", group["lr"]))}
    for key in ("momentum", "weight_decay"):
        if key in group:
            found[key] = float(group[key])
    if "momentum" not in group and optimizer != args.optimizer:
        found["momentum"] = None  # an optimizer of one's own, which has none
    unread = {key: value for key, value in found.items() if key not in read}
    return {"optimizer": optimizer, "schedule": made.schedule or own_schedule} | unread


def own_measures(found: dict, args: Settings) -> dict[str, float]:
    """What a script measures by itself. Raises UserError for what cannot be columns."""
    taken = {*COLUMNS, *OWN, *ADDED, *(field.name for field in dataclasses.fields(args))}
    if not isinstance(found, dict):
        raise UserError(f"also= returns a {type(found).__name__}: return numbers by name")
    for name, value in found.items():
        if name in taken or not isinstance(name, str) or not name:
            raise UserError(f"also= measures {name!r}, which is no name of a new column")
        if not isinstance(value, int | float):
            raise UserError(
                f"also= measures {name} as a {type(value).__name__}: give a number, as by .item()"
            )
    return found


def has_shift(norm: nn.Module) -> bool:
    """Whether a normalisation has a β (PyTorch's RMSNorm has none)."""
    return getattr(norm, "bias", None) is not None


class Left(NamedTuple):
    """What a run has left: whether it is finished, and its checkpoint, which a diverged one has
    not."""

    finished: bool
    checkpoint: dict | None = None


def finished_before(run: Run | None, model: nn.Module, data: Data) -> bool:
    """Whether the run is finished, its checkpoint whole and its own; the network then is what the
    run left. If not, `resume` says why. Raises OtherData where it was made from other data."""
    left = processes.from_first(run and what_it_left(run, model, data))
    if left.checkpoint and not run:  # the first process has it in its network by now
        checkpoints.restore(model, left.checkpoint)
    return left.finished


def what_it_left(run: Run, model: nn.Module, data: Data) -> Left:
    """What the run has left; a checkpoint is put into the network."""
    if run.diverged or not run.is_over:
        return Left(run.is_over)
    try:
        with damaged_if_malformed():
            content = read_checkpoint(run.checkpoint)
            run.compare(content["about"])
            if content["epoch"] != run.args.epochs:
                raise Damaged(f"it is of epoch {content['epoch']}")  # of records in another folder
            if is_other(content, data):
                raise of_other_data(run.csv)
            checkpoints.restore(model, content)
            return Left(True, content)
    except Damaged:
        return Left(False)


def is_other(content: dict, data: Data) -> bool:
    """Whether a checkpoint comes from other images: by the training images' number, mean and
    deviation and, where it has one, by the digest of all splits."""
    return any(content[key] != value for key, value in what_data(data).items() if key in content)


def what_data(data: Data) -> dict:
    mean, std = data.mean_std
    known = {"images": len(data.labels["train"]), "mean": mean.tolist(), "std": std.tolist()}
    return known | {"digest": data.digest}
