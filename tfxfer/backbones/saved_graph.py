"""A loaded SavedModel: how it may be called, what it holds, what it returns."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfxfer.backbones.loading import load_saved_model
from tfxfer.errors import UserError

_REUSABLE = ("__call__", "variables", "trainable_variables", "regularization_losses")
_SIGNATURES = ("serving_default", "default")
_POOLED, _BLOCKS = "pooled_output", "encoder_outputs"


@dataclass(frozen=True)
class SavedGraph:
    """A loaded SavedModel, and how it may be called.

    Attributes:
        module: What was loaded, held because variables that it does not list live with it.
        function: From inputs, and from `training` if it takes that, to features.
        trace: The concrete function of inference.
        inputs: Shape and dtype of what it takes, or a dict of such.
        outputs: A tensor or a dict of tensors.
        takes_training: Whether the function takes `training` at all.
        has_training: Whether it was saved for `training=True` too.
        variables: All that it lists or reads, each once.
        learned: Those that a gradient may train.
        hidden: What it reads and does not list as its variables, such as the state of a dropout
            generator.
        regularization_losses: Functions without arguments.
        untrainable: Why it cannot be trained; empty if it can.
        strategy: The strategy that it was loaded under.
    """

    module: Any
    function: Callable[..., Any]
    trace: Any
    inputs: Any
    outputs: Any
    takes_training: bool
    has_training: bool
    variables: tuple[tf.Variable, ...]
    learned: tuple[tf.Variable, ...]
    hidden: tuple[tf.Variable, ...]
    regularization_losses: tuple[Callable[[], tf.Tensor], ...]
    untrainable: str
    strategy: tf.distribute.Strategy

    @property
    def blocks(self) -> int:
        """How many blocks an encoder tells the outputs of."""
        return len(hidden_of(self.outputs))


def read_graph(folder: Path, source: str) -> SavedGraph:
    """Loads a SavedModel of whichever kind."""
    module = load_saved_model(folder, f"Backbone {source!r}")
    traces = _traces(module)
    if not traces:
        return _signature(module, source)
    trace = min(traces, key=_rank)
    missing = [name for name in _REUSABLE if not hasattr(module, name)]
    listed = _unique(() if missing else module.variables)
    learned = () if missing else tuple(module.trainable_variables)
    read = _unique(variable for each in traces for variable in each.variables)
    hidden = tuple(v for v in read if not any(v is other for other in listed))
    untrainable = f"its SavedModel lacks {', '.join(missing)}" if missing else ""
    return SavedGraph(
        module=module,
        function=module.__call__,
        trace=trace,
        inputs=_inputs(trace),
        outputs=trace.structured_outputs,
        takes_training="training" in inspect.signature(module.__call__).parameters,
        has_training=any(_is_for_training(each) for each in traces),
        variables=hidden if missing else listed,
        learned=learned,
        hidden=() if missing else hidden,
        regularization_losses=() if missing else tuple(module.regularization_losses),
        untrainable=untrainable
        or ("" if learned else "its SavedModel lists no trainable variables"),
        strategy=tf.distribute.get_strategy(),
    )


def _signature(module: Any, source: str) -> SavedGraph:
    """Takes a SavedModel by its serving signature, which cannot be trained."""
    signatures = dict(getattr(module, "signatures", {}))
    name = next((name for name in _SIGNATURES if name in signatures), None)
    if name is None and len(signatures) == 1:
        (name,) = signatures
    inputs = signatures[name].structured_input_signature[1] if name else {}
    if len(inputs) != 1:
        raise UserError(
            f"Backbone {source!r} must take one tensor of images or texts, in its __call__ or in a "
            f"signature, and has signatures {sorted(signatures)} with inputs {sorted(inputs)}",
            "Choose a feature vector or an embedding, or export it with tfxfer.save_hub_module.",
        )
    (argument,) = inputs
    trace = signatures[name]
    return SavedGraph(
        module=module,
        function=lambda images: trace(**{argument: images}),
        trace=trace,
        inputs=inputs[argument],
        outputs=trace.structured_outputs,
        takes_training=False,
        has_training=False,
        variables=_unique([*getattr(module, "variables", ()), *trace.variables]),
        learned=(),
        hidden=(),
        regularization_losses=(),
        untrainable=f"its SavedModel has the signature {name!r} alone, and no __call__ to train",
        strategy=tf.distribute.get_strategy(),
    )


def _unique(variables: Any) -> tuple[tf.Variable, ...]:
    return tuple({id(variable): variable for variable in variables}.values())


def _traces(module: Any) -> list[Any]:
    call = module.__call__ if callable(module) else None
    return [
        trace
        for trace in getattr(call, "concrete_functions", ())
        if trace.structured_input_signature[0] and isinstance(_inputs(trace), tf.TensorSpec | dict)
    ]


def _inputs(trace: Any) -> Any:
    return trace.structured_input_signature[0][0]


def _is_for_training(trace: Any) -> bool:
    positional, named = trace.structured_input_signature
    return any(value is True for value in (*positional[1:], named.get("training")))


def _rank(trace: Any) -> tuple[bool, bool]:
    """Puts the traces for inference first, and those with a free batch before them."""
    first, *_ = tf.nest.flatten(_inputs(trace))
    return bool(first.shape.rank and first.shape[0] is not None), _is_for_training(trace)


def hidden_of(outputs: Any) -> dict[str, tf.Tensor]:
    """Gives what each block of an encoder returned, by the name of its stage; none if untold."""
    blocks = outputs.get(_BLOCKS, ()) if isinstance(outputs, dict) else ()
    return {f"block{i}": each for i, each in enumerate(blocks)}


def pick(outputs: Any, name: str, source: str) -> Any:
    """Takes the features out of a dict of outputs; TF Hub calls them `default`."""
    if not isinstance(outputs, dict):
        if name:
            raise UserError(
                f"Backbone {source!r} has one output, which has no name, and not {name!r}",
                "Leave output=NAME out.",
            )
        return outputs
    if name in outputs:
        return outputs[name]
    floats = [key for key, value in outputs.items() if key != _BLOCKS and value.dtype.is_floating]
    for usual in ("default", _POOLED):
        if not name and usual in outputs:
            return outputs[usual]
    if not name and len(floats) == 1:
        return outputs[floats[0]]
    raise UserError(
        f"Backbone {source!r} has the outputs {', '.join(sorted(outputs))}"
        + (f", and no {name!r}" if name else ""),
        "Name one of them with output=NAME.",
    )


def units_of(features: Any, source: str) -> int:
    """Reads the size of features.

    Raises:
        UserError: If these are none.
    """
    shape = getattr(features, "shape", tf.TensorShape(None))
    if shape.rank not in (2, 3, 4) or shape[-1] is None:
        raise UserError(
            f"Backbone {source!r} must return features [batch, units], [batch, n, units] or "
            f"[batch, h, w, units], and returns {features}",
            "Choose a feature vector rather than a detector.",
        )
    return shape[-1]
