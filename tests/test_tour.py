"""The notebook, from its first cell to its last, with few epochs."""

from pathlib import Path

from tests.helpers import HERE, environment
import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")


def test_the_tour_runs_from_its_first_cell_to_its_last(monkeypatch):
    for name in ("common.py", "harness", "report", "plots.py", "predict.py", "exp_bn_only.py"):
        Path(name).symlink_to(HERE / name)
    for name, value in (environment() | {"TOUR_EPOCHS": "2"}).items():
        monkeypatch.setenv(name, value)
    tour = nbformat.read(HERE / "tour.ipynb", 4)
    resources = {"metadata": {"path": str(Path.cwd())}}
    nbclient.NotebookClient(tour, timeout=300, resources=resources).execute()
    printed = "".join(o.get("text", "") for c in tour.cells for o in c.get("outputs", []))
    assert "test accuracy" in printed
    assert "beta of the first stage" in printed
    assert len(list(Path("results").rglob("*[0-9a-f].csv"))) == 4
    assert Path("filters.png").exists()
    assert Path("maps.png").exists()


def test_the_committed_tour_has_its_outputs():
    tour = nbformat.read(HERE / "tour.ipynb", 4)
    outputs = [output for cell in tour.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not any(output.output_type == "error" for output in outputs)
