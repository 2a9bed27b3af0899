"""The embedded texts: docstrings of installed libraries as a TFDS builder."""

import ast
import hashlib
import importlib.util
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

# The package of each library, by the name that it is installed under.
LIBRARIES = {
    "keras": "keras",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
}

_DESCRIPTION = """
What public functions, methods and classes of five Python libraries say of themselves: the first two
paragraphs of a docstring, up to its sections, of 5 to 60 words, without marks of Sphinx. The label
is the library. The texts are read from the sources of whichever versions are installed, which the
config names; nothing is downloaded. At most about 800 texts of a library are taken.

Sentences that name one of the libraries, or the short name that it is imported as, are left out,
as are texts that several libraries share; no text is there twice, whatever its case and
punctuation. All texts of a file are in the same split, by a hash of its path: the test split has
about one file in five.
"""

_SKIPPED = re.compile(
    r"(^|/)(tests|testing|conftest|externals|_external|_vendored|_lib|legacy|deprecat\w+"
    r"|distutils|array_api_\w+)(/|\.py$)|_test\.py$"
)
_MOST = 800  # Texts of a library; as numpy, which has the fewest, has about as many.
_PARAGRAPHS = 2
_WORDS = (5, 60)

_NAMED = re.compile(
    r"numpy|scipy|scikit|sklearn|matplotlib|mplot3d|pylab|pyplot|keras|tensorflow"
    r"|(?<![a-z])(np|sp|mpl|plt|tf)(?![a-z])",
    re.IGNORECASE,
)
_SECTION = re.compile(r"[^\n]+\n\s*([-=~^])\1{2,}|#|[A-Z][\w ]*:\n|:\w+[ \w]*:\s|@\w+")
_NO_PROSE = re.compile(r"\.\. |>>>|```|[-+*|] |\w+ : |\w+\(.*\)$|[^\n]*::$", re.DOTALL)
_MARKS = [
    (re.compile(r"\s*\[[\w#]+\]_"), ""),  # A citation.
    (re.compile(r":[\w:+-]+:`[~!]?([^`<]*?)(\s*<[^`>]*>)?`"), r"\1"),  # A role.
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_*"), r"\1"),  # A link.
    (re.compile(r"%\(\w+\)s|\{\w+\}"), ""),  # To be filled in.
    (re.compile(r"https?://\S+"), ""),
    (
        re.compile(
            r"`+(__?(?!\w))?|(?<!\w)[.~!]+(?=[A-Za-z])|(?<!\w)\*{1,2}(?=\w)|(?<=\w)\*{1,2}(?!\w)"
        ),
        "",
    ),
    (re.compile(r"::"), ":"),
    (re.compile(r"\s+"), " "),
]


def config() -> tfds.core.BuilderConfig:
    """Returns the config named by the libraries' versions: others make another dataset."""
    versions = {name: _version(name) for name in LIBRARIES}
    return tfds.core.BuilderConfig(
        name="_".join(f"{name}-{version}" for name, version in versions.items()),
        description="Of " + ", ".join(f"{n} {version}" for n, version in versions.items()) + ".",
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # Put there without an installer.
        return "unknown"


class Docstrings(tfds.core.GeneratorBasedBuilder):
    """Prepares docstrings of libraries that are installed; nothing is imported or downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Five libraries; train and test splits by file."}
    BUILDER_CONFIGS: ClassVar = [config()]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(LIBRARIES)),
                    "file": tfds.features.Text(),
                }
            ),
            supervised_keys=("text", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # Nothing to download.
        examples = collect()
        return {
            "train": self._generate_examples(e for e in examples if not is_test(e["file"])),
            "test": self._generate_examples(e for e in examples if is_test(e["file"])),
        }

    def _generate_examples(self, examples):
        for example in examples:
            yield example["text"], example


def collect() -> list[dict[str, str]]:
    """Returns all examples: `text`, `label` and `file`, such as `sklearn/base.py`."""
    found = {name: _texts(package) for name, package in LIBRARIES.items()}
    times = Counter(folded for texts in found.values() for folded in texts)
    return [
        {"text": text, "label": name, "file": file}
        for name, texts in found.items()
        for folded, (file, text) in texts.items()
        if times[folded] == 1
    ]


def _texts(package: str) -> dict[str, tuple[str, str]]:
    """Returns file and text by the folded text, from files in the order of their hashes."""
    spec = importlib.util.find_spec(package)  # Finds the folder and imports nothing.
    texts: dict[str, tuple[str, str]] = {}
    for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
        files = [path.relative_to(folder.parent).as_posix() for path in folder.rglob("*.py")]
        for file in sorted(files, key=_hash):
            if len(texts) >= _MOST:
                break
            if not _SKIPPED.search(file):
                source = (folder.parent / file).read_text(encoding="utf-8")
                for text in filter(None, map(summary, docstrings_of(source))):
                    texts.setdefault(fold(text), (file, text))
    return texts


def is_test(file: str) -> bool:
    """Says whether the texts of a file are in the test split."""
    return _hash(file) % 5 == 0


def _hash(file: str) -> int:
    return int.from_bytes(hashlib.sha256(file.encode()).digest()[:8], "big")


def docstrings_of(source: str, private: bool = False) -> Iterator[str]:
    """Gives the docstrings of a module's functions, methods and classes, public ones by default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of escapes such as \d, which are not ours to mend.
        nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_") and not private:
                continue
            yield ast.get_docstring(node) or ""
            if not isinstance(node, ast.ClassDef):
                continue  # What is defined inside is nobody's to call.
        nodes += [each for each in ast.iter_child_nodes(node) if isinstance(each, ast.stmt)]


def summary(docstring: str) -> str:
    """Returns how a docstring begins, cleaned; empty if too little of it is left."""
    if ".. deprecated::" in docstring:
        return ""
    paragraphs = re.split(r"\n\s*\n", docstring.strip())
    before = takewhile(lambda paragraph: not _SECTION.match(paragraph), paragraphs)
    prose = [paragraph for paragraph in before if not _NO_PROSE.match(paragraph.lstrip())]
    sentences = re.split(r"(?<=[.!?:])\s+", clean("\n".join(prose[:_PARAGRAPHS])))
    words = " ".join(s for s in sentences if not _NAMED.search(s)).split()
    least, most = _WORDS
    return " ".join(words[:most]) if len(words) >= least else ""


def clean(text: str) -> str:
    """Takes the marks of reStructuredText off a text, and folds white space."""
    for mark, plain in _MARKS:
        text = mark.sub(plain, text)
    return text.strip()


def fold(text: str) -> str:
    """Returns a text in lower case and without punctuation, to be compared."""
    return " ".join(re.findall(r"\w+", text.lower()))
