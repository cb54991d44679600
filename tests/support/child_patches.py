"""Functions of the product, or of a library, replaced in its child processes.

A `sitecustomize` module on the search path of a process is run at its start: this one waits until
a module is loaded, and hands it to a function. The product knows nothing of it.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

SITECUSTOMIZE = """
import importlib.abc, importlib.util, sys

PATCHES = {patches!r}
sys.path.insert(0, {root!r})

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        patch = PATCHES.pop(name, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(name)
        plain = spec.loader.exec_module

        def exec_module(module):
            plain(module)
            place, function = patch.split(":")
            getattr(importlib.import_module(place), function)(module)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def install(folder: Path, patches: dict[str, str]) -> Path:
    """Write the module.

    Args:
        folder: made where it is missing.
        patches: "package.module:function" by the name of the module that, once it is loaded, is
            handed to the function.

    Returns:
        The folder, to be put on the search path (PYTHONPATH) of the processes.
    """
    folder.mkdir(exist_ok=True)
    text = SITECUSTOMIZE.format(patches=patches, root=str(ROOT))
    (folder / "sitecustomize.py").write_text(text)
    return folder
