"""The house rules: which file may import which."""

import ast
from pathlib import Path

import pytest

import tfxfer

PACKAGE = Path(tfxfer.__file__).parent

# A file imports only from its own room and from lower floors.
FLOORS = {
    "run": 10,
    "methods": 9,
    "report": 8,
    "training": 7,
    "export": 7,
    "embeddings": 7,
    "models": 6,
    "feature_data": 5,
    "heads": 5,
    "transfer": 5,
    "selection": 6,
    "ladder": 7,
    "costs": 4,
    "losses": 3,
    "features": 4,
    "evaluate": 4,
    "verification": 4,
    "data": 3,
    "backbones": 3,
    "plan": 3,
    "rules": 4,
    "scores": 0,
    "cache": 2,
    "config": 2,
    "spec": 2,
    "distribute": 2,
    "turns": 3,
    "workers": 1,
    "checks": 1,
    "errors": 0,
    "files": 0,
    "intervals": 0,
    "locks": 0,
    "memory": 0,
    "pareto": 0,
    "task": 0,
    "timing": 0,
    "__init__": 0,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_from_lower_floors(path):
    here = room(path)
    assert here in FLOORS, f"{here} has no floor"
    for name in imports(path):
        if name.startswith("tfxfer."):
            there = name.split(".")[1]
            assert there == here or FLOORS[there] < FLOORS[here], f"{here} imports {name}"


@pytest.mark.parametrize(
    ("library", "where"),
    [
        ("tensorflow_hub", {"backbones/hub.py"}),
        ("kagglehub", {"backbones/hub.py"}),
        ("keras_hub", {"backbones/presets.py"}),
        ("tensorflow_text", {"backbones/loading.py"}),
        ("tf_keras", {"backbones/keras_file.py"}),
        (
            "tensorflow_datasets",
            {
                "data/availability.py",
                "data/digits.py",
                "data/docstrings.py",
                "data/tfds_features.py",
                "data/tfds_source.py",
            },
        ),
        ("PIL", {"data/images.py"}),
        ("matplotlib", {"report/plots.py"}),
        ("pyarrow", {"embeddings.py"}),
        ("absl", {"run.py"}),
    ],
)
def test_library_stays_in_its_room(library, where):
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users == where


def test_every_public_name_is_there():
    assert sorted(tfxfer.__all__) == sorted(tfxfer._EXPORTS)
    for name in tfxfer.__all__:
        assert getattr(tfxfer, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = tfxfer.nothing
