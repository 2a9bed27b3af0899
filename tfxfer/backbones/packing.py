"""The files of a SavedModel: their hash, and the same as text inside the config of a layer."""

import base64
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

_CHECKPOINT = "variables/variables"
_HIDDEN = "hidden.npz"
_BLANKS = "blanks.npz"


def fingerprint_of(folder: Path, output: str) -> str:
    """Hashes graph, weights and assets, with their names."""
    digest = hashlib.sha256(output.encode())
    for path in [folder / "saved_model.pb", *_files(folder, "variables"), *_assets(folder)]:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _files(folder: Path, part: str) -> list[Path]:
    return sorted(path for path in (folder / part).rglob("*") if path.is_file())


def _assets(folder: Path) -> list[Path]:
    return _files(folder, "assets")


def pack(folder: Path, hidden: tuple[tf.Variable, ...]) -> str:
    """Packs a SavedModel as text, without the values of the weights that Keras itself saves.

    Of those, only names, shapes and types go in, since `tf.saved_model.load` reads them from a
    checkpoint.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        marks = [path for path in [folder / "tfhub_module.pb"] if path.is_file()]
        for path in [folder / "saved_model.pb", *marks, *_assets(folder)]:
            archive.write(path, path.relative_to(folder).as_posix())
        with archive.open(_HIDDEN, "w") as file:
            np.savez(file, *[np.asarray(variable.numpy()) for variable in hidden])
        if (folder / f"{_CHECKPOINT}.index").is_file():
            reader = tf.train.load_checkpoint(str(folder / _CHECKPOINT))
            types = reader.get_variable_to_dtype_map()
            blanks = {
                # What is a string is no weight: the checkpoint's own list of objects.
                name: reader.get_tensor(name)
                if types[name] == tf.string
                else np.array([types[name].as_datatype_enum, *shape])
                for name, shape in reader.get_variable_to_shape_map().items()
            }
            with archive.open(_BLANKS, "w") as file:
                names = np.array(list(blanks))
                values = (
                    np.frombuffer(v, np.uint8) if isinstance(v, bytes) else v
                    for v in blanks.values()
                )
                np.savez(file, names, *values)
    return base64.b64encode(packed.getvalue()).decode("ascii")


def unpack(packed: str, folder: Path) -> list[np.ndarray]:
    """Writes a packed SavedModel with weights of zero; returns the values of hidden variables."""
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(packed))) as archive:
        names = archive.namelist()
        for name in names:
            if name not in (_HIDDEN, _BLANKS):
                archive.extract(name, folder)
        with archive.open(_HIDDEN) as file:
            hidden = list(_arrays(file).values())
        if _BLANKS in names:
            with archive.open(_BLANKS) as file:
                tensors, *values = _arrays(file).values()
            (folder / _CHECKPOINT).parent.mkdir()
            tf.raw_ops.SaveV2(
                prefix=str(folder / _CHECKPOINT),
                tensor_names=list(tensors),
                shape_and_slices=[""] * len(tensors),
                tensors=[
                    tf.constant(value.tobytes())
                    if value.dtype == np.uint8
                    else tf.zeros(value[1:], tf.as_dtype(int(value[0])))
                    for value in values
                ],
            )
    return hidden


def _arrays(file: Any) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(file.read()), allow_pickle=False) as arrays:
        return dict(arrays)
