"""The notebook of docs/guide: kept without results, and run whole."""

from __future__ import annotations

import json

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "guide" / "compare.ipynb"


def test_it_is_kept_without_results() -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_it_runs() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    lines = "".join(output.get("text", "") for output in outputs).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[-3:]}
    assert rows.keys() == {"fp32", "int8", "fp8"}
    assert float(rows["int8"][0]) < float(rows["fp32"][0]) and float(rows["int8"][2]) > float(rows["fp8"][2]) > 15
