"""Run notebooks and keep what they print and show: python docs/notebooks.py trainer"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "notebooks"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's; the notebooks show no bar of it
}


def executed(path: Path) -> Any:
    """The notebook, run from its first cell to its last in a new kernel; an error in a cell is raised."""
    import nbformat
    from nbclient import NotebookClient

    os.environ.update(QUIET)  # the kernel inherits them
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=1200, startup_timeout=600, kernel_name="python3", record_timing=False)
    client.resources = {"metadata": {"path": str(FOLDER)}}
    client.execute()
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


if __name__ == "__main__":
    import nbformat

    for name in sys.argv[1:]:
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(executed(path), path)
