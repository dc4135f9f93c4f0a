"""Scripts that fit twice: a second phase, or a student of a teacher, stands on what the first call
has made, and on nothing else."""

from pathlib import Path

import pytest

from tests.helpers import Forked, rows
from tests.test_copies import SMALL, script

WARM = """
@dataclass
class Settings(common.Settings):
    first_lr: float = common.flag(0.1, "rate of the first phase", common.number(float, 0))

def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "output")
    common.fit(model, data, args.but(lr=args.first_lr))
    common.freeze(model, "bn")
    return common.fit(model, data, args)
"""


def phases(*words, results="results") -> tuple[int, str, dict[str, list[dict]]]:
    """The exit code, what is said, and the rows of each phase by what it trains."""
    places = ["--results", results, "--checkpoints", f"{results}-checkpoints"]
    process = Forked("exp_warm.py", *SMALL, "--depth", 8, "--quiet", *words, *places)
    code = process.wait()
    found = [rows(path) for path in Path(results, "warm").glob("*[0-9a-f].csv")]
    return code, process.err, {its[0]["train"]: its for its in found}


def test_no_second_phase_begins_before_the_first_is_finished():
    script("warm", WARM)
    for epoch in range(1, 4):
        code, _, found = phases("--time-limit", 1e-9)
        assert code == 0 and len(found.pop("output")) == epoch and not found
    code, said, stopped = phases()
    assert code == 0 and "is not used" not in said
    assert stopped == phases(results="whole")[2]
    assert len(stopped["bn"]) == 4 and stopped["bn"][0]["weight_init"] == "own"


@pytest.mark.parametrize("start", ["first", "second"])
def test_no_second_phase_begins_where_the_first_has_diverged(start):
    script("warm", WARM)
    for _ in range(1 if start == "first" else 2):
        code, said, found = phases("--first-lr", 1e38)
    assert code == 1 and list(found) == ["output"]
    assert said.count("\n") == 1 and said.startswith("diverged: ")
