"""Segment shards of images: read, predict, write masks, commit, report.

The names below are loaded at first use, so that `import pipeline` costs nothing:

    from pipeline import load_config, run

    config = load_config(None, [], {"input.url": "shards", "output.url": "out",
                                    "model.weights": "demo"})
    result = run(config)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import RunConfig, load_config
    from pipeline.driver import run
    from pipeline.storage.store import Store

__all__ = ["RunConfig", "Store", "load_config", "run"]

_MODULES = {
    "RunConfig": "pipeline.config",
    "Store": "pipeline.storage.store",
    "load_config": "pipeline.config",
    "run": "pipeline.driver",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
