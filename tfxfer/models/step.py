"""One step of training: gradients of what trains, and nothing else."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

Gradients = list[tf.Tensor | None]


class StepModel(keras.Model):
    """A model whose training step knows of frozen weights, of large batches, and of a start.

    `compile` takes, beside Keras' own arguments:

    - `gradient_accumulation_steps`: parts that each batch is computed in, one after the other, so
      that memory is that of a part. The step is that of the whole batch, but for batch
      normalization and losses over the batch, which go by the part. Unlike the argument of Keras'
      optimizers of that name it works under `MirroredStrategy`, though not with losses over the
      batch of all replicas, and nothing is left over at the end of an epoch.
    - `global_clipnorm`: most norm of the gradient over all weights together, taken after the
      gradients of all replicas are summed; Keras' optimizers clip each replica's own.
    - `l2_sp` and `toward`: adds `l2_sp / 2 * |w - start|^2` to what is made small, for each
      `(weight, start)` of `toward`, and the usual `l2_sp / 2 * |w|^2` where `start` is `None`. Li
      et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
      section 3. The loss that is shown is without it. A file does not keep it.
    """

    def compile(
        self,
        optimizer: Any = "rmsprop",
        *args: Any,
        gradient_accumulation_steps: int = 1,
        global_clipnorm: float | None = None,
        l2_sp: float = 0.0,
        toward: Sequence[tuple[keras.Variable, tf.Tensor | None]] = (),
        **kwargs: Any,
    ) -> None:
        """Configures training; see the class.

        Raises:
            ValueError: If a number is out of range.
        """
        if gradient_accumulation_steps < 1:
            raise ValueError(
                f"Expected at least 1 accumulation step, received {gradient_accumulation_steps}."
            )
        if global_clipnorm is not None and not global_clipnorm > 0:
            raise ValueError(f"Expected a norm above 0 or None, received {global_clipnorm}.")
        if not l2_sp >= 0:
            raise ValueError(f"Expected l2_sp of at least 0, received {l2_sp}.")
        if l2_sp and not toward:
            raise ValueError("Expected weights to pull toward their start, received l2_sp alone.")
        super().compile(optimizer, *args, **kwargs)
        self._parts, self._clipnorm, self._l2_sp = (
            gradient_accumulation_steps,
            global_clipnorm,
            l2_sp,
        )
        # In a function, so that Keras does not take the starts for state of the model.
        starts = {id(weight): start for weight, start in toward} if l2_sp else {}
        self._starts = lambda: starts

    def get_compile_config(self) -> dict[str, Any]:
        """Returns what `compile` was given, for a file; of `l2_sp`, the strength alone."""
        config = super().get_compile_config()
        if not config:
            return config
        own = {
            "gradient_accumulation_steps": self._parts,
            "global_clipnorm": self._clipnorm,
            "l2_sp": self._l2_sp,
        }
        return {**config, **keras.saving.serialize_keras_object(own)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as Keras does when it loads a model; warns where `l2_sp` is lost."""
        config = keras.saving.deserialize_keras_object(config)
        if strength := config.pop("l2_sp", 0.0):
            warnings.warn(
                f"The model was compiled with l2_sp={strength}, and its file does not hold the "
                "starts: to train on with it, compile again, with `toward`.",
                stacklevel=2,
            )
        self.compile(**config)
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Builds metrics and optimizer by the first batch of a fit under a strategy.

        Keras takes the mean of that over the replicas, which texts have none of; the share of one
        replica shows the shapes as well.
        """
        if iterator is not None and self._distribute_strategy is not None:
            _, _, batches = next(iter(iterator))
            first = self._distribute_strategy.experimental_local_results
            data_batch = tf.nest.map_structure(lambda each: first(each)[0], next(batches))
        super()._maybe_symbolic_build(data_batch=data_batch)

    def train_step(self, data):
        """Takes one step, as Keras does, except that the tape watches nothing frozen.

        Keras' own step watches every variable that the forward pass reads, so that a frozen
        network would keep its activations for a gradient that nobody asks for.
        """
        inputs, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        trained = self.trainable_weights
        batch = (inputs, targets) if sample_weight is None else (inputs, targets, sample_weight)
        if self._parts == 1:
            gradients = self._gradients(trained, *batch)
        else:
            gradients = self._accumulated(trained, batch)
        if trained:
            self._apply(gradients, trained)
        return self.get_metrics_result()

    def _gradients(
        self, trained: list[keras.Variable], inputs: Any, targets: Any, sample_weight: Any = None
    ) -> Gradients:
        """Runs forward and backward once, and counts the metrics."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for weight in trained:
                tape.watch(weight.value)
            outputs, loss = self._forward(inputs, targets, sample_weight)
            # Keras divides a loss by the number of replicas, whose gradients are then summed.
            self._loss_tracker.update_state(
                loss * _replicas(), sample_weight=tf.shape(tf.nest.flatten(inputs)[0])[0]
            )
            scaled = self.optimizer.scale_loss(loss)
        self.compute_metrics(inputs, targets, outputs, sample_weight=sample_weight)
        return tape.gradient(scaled, trained) if trained else []

    def _forward(self, inputs: Any, targets: Any, sample_weight: Any) -> tuple[Any, tf.Tensor]:
        """Runs the model on a batch; returns its outputs and the loss, of this replica's share."""
        outputs = self(inputs, training=True)
        return outputs, self.compute_loss(inputs, targets, outputs, sample_weight, training=True)

    def _accumulated(self, trained: list[keras.Variable], batch: tuple[Any, ...]) -> Gradients:
        """Sums the gradients of the parts of a batch, each weighed by its share of the examples."""
        examples = tf.shape(tf.nest.flatten(batch)[0])[0]
        size = -(-examples // self._parts)

        def body(start: tf.Tensor, sums: list[tf.Tensor]):
            part = tf.nest.map_structure(lambda each: each[start : start + size], batch)
            share = tf.cast(tf.minimum(size, examples - start), tf.float32) / tf.cast(
                examples, tf.float32
            )
            added = self._gradients(trained, *part)
            reached.extend(gradient is not None for gradient in added)
            return start + size, [
                total if gradient is None else total + tf.cast(share, gradient.dtype) * gradient
                for total, gradient in zip(sums, added, strict=True)
            ]

        reached: list[bool] = []
        zeros = [tf.zeros(weight.shape, weight.dtype) for weight in trained]
        _, sums = tf.while_loop(
            lambda start, sums: start < examples,
            body,
            (tf.constant(0), zeros),
            parallel_iterations=1,  # Two parts at once would need the memory of both.
            # The shape of a sliced batch is not known, and those of sums stay.
            shape_invariants=(tf.TensorShape([]), [zero.shape for zero in zeros]),
        )
        return [
            total if known else None
            for total, known in zip(sums, reached[: len(trained)], strict=True)
        ]

    def _apply(self, gradients: Gradients, trained: list[keras.Variable]) -> None:
        """Hands gradients to the optimizer, which sums them over the replicas."""
        replicas = _replicas()
        scale = self.optimizer.scale_loss(tf.constant(1.0))  # Above 1 in mixed_float16 alone.
        starts = self._starts()
        if starts:
            gradients = [
                _pulled(gradient, weight, starts[id(weight)], self._l2_sp * scale / replicas)
                if id(weight) in starts
                else gradient
                for gradient, weight in zip(gradients, trained, strict=True)
            ]
        # Keras' loss scaling looks at one replica's gradients alone, and clipping needs the sum,
        # of which each replica then hands on its share, since the optimizer sums.
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if replicas > 1 and (self._clipnorm or scaled):
            gradients = _times(1 / replicas, _summed(gradients))
        if self._clipnorm:
            present = [each / scale for each in gradients if each is not None]
            norm = tf.linalg.global_norm(present) * replicas
            gradients = _times(tf.minimum(1.0, self._clipnorm / tf.maximum(norm, 1e-30)), gradients)
        self.optimizer.apply_gradients(zip(gradients, trained, strict=True))


def _replicas() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync


def _summed(gradients: Gradients) -> Gradients:
    """Sums gradients over the replicas."""
    present = [tf.convert_to_tensor(each) for each in gradients if each is not None]
    context = tf.distribute.get_replica_context()
    sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if each is None else next(sums) for each in gradients]


def _times(factor: Any, gradients: Gradients) -> Gradients:
    return [
        None if each is None else tf.convert_to_tensor(each) * tf.cast(factor, each.dtype)
        for each in gradients
    ]


def _pulled(
    gradient: tf.Tensor | None, weight: keras.Variable, start: tf.Tensor | None, strength: Any
) -> tf.Tensor:
    away = tf.convert_to_tensor(weight.value)
    if start is not None:
        away = away - start
    pull = tf.cast(strength, away.dtype) * away
    return pull if gradient is None else tf.convert_to_tensor(gradient) + pull


def gathered(value: Any) -> tf.Tensor:
    """Puts the shares of all replicas together, all of one size; gradients find their way back.

    As a sum of shares that are each in their own place: `all_gather` and sums of gradients in one
    process can take each other's keys (`Collective instance ... expected type`).
    """
    context: Any = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return value
    place = tf.one_hot(context.replica_id_in_sync_group, replicas, dtype=tf.float32)
    value = tf.cast(value, tf.float32)
    apart = tf.reshape(place, [-1, *[1] * value.shape.rank]) * value[None]
    together = context.all_reduce(tf.distribute.ReduceOp.SUM, apart)
    return tf.reshape(together, [-1, *value.shape[1:]])
