"""The examples in docs/examples run unchanged, and the notebook prints its stored output."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
EXPECTED = {
    "predict_images.py": ["image 2: background"],
    "segment_dataset.py": ["2 of 2 shards are pending", "2 of 2 shards\n", "exit code 0"],
    "score_masks.py": ["pixel accuracy 0.900, mean IoU 0.850", "[0.75, 0.8, 1.0]"],
    "export_masks.py": ["4 images of 1 shards, 0 shards left out"],
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_examples_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    out = capsys.readouterr().out
    for text in EXPECTED[name]:
        assert text in out


@pytest.mark.slow
def test_the_notebook_prints_its_stored_output(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    printed = _printed(notebook)
    notebook.metadata.kernelspec.name = "python3"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of Jupyter itself
        client = NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute()
    assert "mean IoU" in printed and _printed(notebook) == printed


def _printed(notebook: object) -> str:
    cells = notebook.cells  # type: ignore[attr-defined]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")
