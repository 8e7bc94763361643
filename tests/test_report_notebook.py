"""The plotting notebook, run on the table of a report."""

import sys
from pathlib import Path

import pytest
from report_runs import fabricated, write_run

from w2s_jax.report import write_report

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "plotting.ipynb"


@pytest.mark.slow
def test_the_notebook_draws_the_ladder_and_the_losses(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    runs = []
    for seed in (0, 1, 2):
        result = fabricated(seed, seed / 100)
        result["weak"]["parameters"] = 1000
        for entry in (result["ceiling"], *result["students"].values()):
            entry["parameters"] = 50_000
        runs.append(write_run(tmp_path / f"run{seed}", result, curves=False))
    page = write_report(runs, tmp_path / "out")
    monkeypatch.setenv("W2S_TABLE", str(page.parent / "table.csv"))
    # Use this environment's kernel, not the system's.
    monkeypatch.setenv("JUPYTER_PATH", str(Path(sys.prefix) / "share" / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # It is stored without outputs.
    assert all(not cell.get("outputs") for cell in notebook.cells)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) == 2
    text = "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)
    assert "3 runs, 12 rows" in text
    # The mean of .742, .752 and .762, and the standard error .01 / sqrt(3).
    assert "0.752" in text and "0.006" in text
