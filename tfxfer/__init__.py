"""Transfer learning for TensorFlow and Keras 3, end to end.

Take what a trained network knows, move it to a new task, and hand back a model that is ready
to serve. From the shell: ``python -m tfxfer.run --mode=finetune``. From Python::

    import tfxfer

    backbone = tfxfer.load_backbone("glyphs")           # or a TF Hub handle, or a folder
    model = tfxfer.FineTuner(backbone, keras.layers.Dense(10))
    model.unfreeze(["head"])                            # stages, input side first: model.stages
    model.compile(...)
    model.fit(...)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfxfer import losses
    from tfxfer.backbones import load_backbone
    from tfxfer.data.pipeline import batches, train_batches
    from tfxfer.data.sources import open_dataset
    from tfxfer.data.splits import split_data
    from tfxfer.errors import UserError
    from tfxfer.export import save_hub_module
    from tfxfer.methods.compare import compare
    from tfxfer.methods.distill import distill
    from tfxfer.methods.extract import extract
    from tfxfer.methods.finetune import finetune
    from tfxfer.methods.lr_find import lr_find
    from tfxfer.methods.select import select
    from tfxfer.models import (
        Distiller,
        FeatureExtractor,
        FineTuner,
        LossSchedule,
        MutualLearner,
        Teacher,
        load_model,
    )

__version__ = "0.1.0"

# Imported at first use: TensorFlow costs seconds, and printing help must not.
_EXPORTS = {
    "Distiller": "tfxfer.models",
    "FeatureExtractor": "tfxfer.models",
    "FineTuner": "tfxfer.models",
    "LossSchedule": "tfxfer.models",
    "MutualLearner": "tfxfer.models",
    "Teacher": "tfxfer.models",
    "UserError": "tfxfer.errors",
    "batches": "tfxfer.data.pipeline",
    "compare": "tfxfer.methods.compare",
    "distill": "tfxfer.methods.distill",
    "extract": "tfxfer.methods.extract",
    "finetune": "tfxfer.methods.finetune",
    "load_backbone": "tfxfer.backbones",
    "load_model": "tfxfer.models",
    "losses": "tfxfer.losses",
    "lr_find": "tfxfer.methods.lr_find",
    "open_dataset": "tfxfer.data.sources",
    "save_hub_module": "tfxfer.export",
    "select": "tfxfer.methods.select",
    "split_data": "tfxfer.data.splits",
    "train_batches": "tfxfer.data.pipeline",
}

__all__ = [
    "Distiller",
    "FeatureExtractor",
    "FineTuner",
    "LossSchedule",
    "MutualLearner",
    "Teacher",
    "UserError",
    "batches",
    "compare",
    "distill",
    "extract",
    "finetune",
    "load_backbone",
    "load_model",
    "losses",
    "lr_find",
    "open_dataset",
    "save_hub_module",
    "select",
    "split_data",
    "train_batches",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tfxfer' has no attribute {name!r}")
    module = importlib.import_module(_EXPORTS[name])
    return module if module.__name__ == f"tfxfer.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
