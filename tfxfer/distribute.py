"""Which devices share the work: of this machine, or of several workers; and what workers share."""

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfxfer.errors import UserError, first_line
from tfxfer.workers import this_worker

MULTIWORKER = "multiworker"
_MOST_TASKS = 2**10  # Of SLURM on one node.
_FEW, _CHUNK = 2**10, 2**22  # Numbers that workers exchange at once.


def pick_strategy(name: str = "auto", num_logical_devices: int = 0) -> tf.distribute.Strategy:
    """Returns the strategy of a name; the same one each time, since a process can have one.

    Args:
        name: `auto`: the workers of `TF_CONFIG` if it names several, else all GPUs if there are
            several, else one device. `none`: one device. `mirrored`: all GPUs of this machine, or
            all logical devices of its CPU. `multiworker`: the workers of `TF_CONFIG`, or of a SLURM
            step. `tpu`: the TPU that `TPU_NAME` names, or that is attached.
        num_logical_devices: Parts that the CPU is split into first, which then share the work, to
            try things out; not if 0.

    Returns:
        The strategy.

    Raises:
        UserError: If the devices are not there, or TensorFlow has been used before they could be
            set up.
    """
    if not os.environ.get("TF_CONFIG"):
        os.environ.pop("TF_CONFIG", None)  # TensorFlow would read an empty one as JSON.
    workers = name == MULTIWORKER or (name == "auto" and this_worker().count > 1)
    if num_logical_devices and (workers or name == "tpu"):
        raise UserError(
            f"--num_logical_devices={num_logical_devices} splits the CPU of one machine, and "
            f"--strategy={name} is of others",
            "Leave it out, or give --strategy=mirrored.",
        )
    if workers:
        return _multiworker()
    if name == "tpu":
        return _tpu()
    if name == "none":
        return tf.distribute.get_strategy()
    if num_logical_devices:
        _split_cpu(num_logical_devices)
    kind = "CPU" if num_logical_devices else kind_of_device()
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    if name == "mirrored" and len(devices) < 2:
        raise UserError(
            f"--strategy=mirrored must have several devices, and there is {len(devices)} {kind}",
            "Leave it out, or try it with --num_logical_devices=2.",
        )
    asked = kind == "GPU" or name == "mirrored" or num_logical_devices > 1
    if len(devices) > 1 and asked:
        return _mirrored(tuple(devices))
    return tf.distribute.get_strategy()


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(list(devices))


@functools.cache
def _split_cpu(count: int) -> None:
    (cpu, *_) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * count
    try:
        tf.config.set_logical_device_configuration(cpu, parts)
    except RuntimeError as error:
        raise UserError(
            f"--num_logical_devices={count} must come before TensorFlow is used: "
            f"{first_line(error)}",
            "Call tfxfer.distribute.pick_strategy first.",
        ) from error


@functools.cache
def _multiworker() -> tf.distribute.Strategy:
    if not os.environ.get("TF_CONFIG"):
        if "SLURM_PROCID" not in os.environ:
            raise UserError(
                "--strategy=multiworker must be told of the workers, and TF_CONFIG is not set",
                "Start it by srun or another launcher that does, or set it for each process.",
            )
        os.environ["TF_CONFIG"] = json.dumps(_from_slurm())  # What else asks reads it there.
    this_worker(MULTIWORKER)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise UserError(
            f"--strategy=multiworker must come before TensorFlow is used: {first_line(error)}",
            "Call tfxfer.distribute.pick_strategy('multiworker') first.",
        ) from error


def _from_slurm() -> dict[str, Any]:
    """Reads the workers of a SLURM step, one a task."""
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver
    if shutil.which("nvidia-smi"):
        slurm = resolver()
    else:  # It counts GPUs by that program, and wants one for each task.
        slurm = resolver(gpus_per_node=_MOST_TASKS, gpus_per_task=1, auto_set_gpu=False)
    cluster = slurm.cluster_spec().as_dict()
    role, index = slurm.get_task_info()
    return {"cluster": cluster, "task": {"type": role, "index": index}}


@functools.cache
def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"--strategy=tpu must have a TPU, and there is none: {first_line(error)}",
            "Name it in TPU_NAME, or leave --strategy out.",
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def kind_of_device() -> str:
    """Returns `GPU` if there is one, else `CPU`."""
    return "GPU" if tf.config.list_logical_devices("GPU") else "CPU"


def describe(strategy: tf.distribute.Strategy) -> str:
    """Names the devices of a strategy, such as `1 CPU` or `2 workers with 8 GPU`."""
    kind = kind_of_device()
    if isinstance(strategy, tf.distribute.TPUStrategy):
        kind = "TPU"
    workers = worker_count(strategy)
    among = f"{workers} workers with " if workers > 1 else ""
    return f"{among}{strategy.num_replicas_in_sync} {kind}"


def worker_count(strategy: tf.distribute.Strategy) -> int:
    """Returns how many processes share the work of a strategy."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return this_worker(MULTIWORKER).count
    return 1


def worker_index(strategy: tf.distribute.Strategy) -> int:
    """Returns which of these processes this is, from 0."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return this_worker(MULTIWORKER).index
    return 0


def agreed(strategy: tf.distribute.Strategy, value: Any) -> Any:
    """Returns the chief's value on all workers, which must all call this at the same place.

    Args:
        strategy: Of the workers.
        value: Of what JSON can hold; that of the chief counts.
    """
    if worker_count(strategy) == 1:
        return value
    return json.loads(_sent(strategy, json.dumps(value).encode()))


def all_agree(strategy: tf.distribute.Strategy, value: int) -> int:
    """Returns the least of the workers' numbers, which must all call this at the same place."""
    if worker_count(strategy) == 1:
        return value
    places = np.zeros(worker_count(strategy), np.int64)
    places[worker_index(strategy)] = value
    return int(_summed(strategy, places).min())


def share_folder(strategy: tf.distribute.Strategy, folder: Path) -> None:
    """Gives each worker the files that the chief has in a folder, in its own folder.

    Args:
        strategy: Of the workers.
        folder: A folder of this worker. Hidden files are left where they are.
    """
    if worker_count(strategy) == 1:
        return
    chief = worker_index(strategy) == 0
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()] if chief else []
    names = [path.relative_to(folder).as_posix() for path in found]
    for name in agreed(strategy, [name for name in names if not name.startswith(".")]):
        content = _sent(strategy, (folder / name).read_bytes() if chief else b"")
        if not chief:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def share_weights(strategy: tf.distribute.Strategy, layer: Any) -> None:
    """Gives a layer on all workers the weights that it has on the chief.

    Args:
        strategy: Of the workers.
        layer: A Keras layer or model, of the same weights everywhere.
    """
    if worker_count(strategy) == 1:
        return
    own = layer.get_weights()
    content = _sent(strategy, b"".join(np.ascontiguousarray(each).tobytes() for each in own))
    shared, at = [], 0
    for each in own:
        part = np.frombuffer(content, each.dtype, each.size, at)
        shared.append(part.reshape(each.shape))
        at += each.nbytes
    layer.set_weights(shared)


def _sent(strategy: tf.distribute.Strategy, content: bytes) -> bytes:
    """Returns the chief's bytes."""
    chief = worker_index(strategy) == 0
    size = int(_summed(strategy, np.array([len(content) * chief]))[0])
    words = np.zeros(-(-size // 8), np.int64)  # Zeros of the others add nothing, whatever it is.
    if chief:
        words.view(np.uint8)[:size] = np.frombuffer(content, np.uint8)
    parts = [
        _summed(strategy, words[at : at + _CHUNK]).tobytes() for at in range(0, len(words), _CHUNK)
    ]
    return b"".join(parts)[:size]


def _summed(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    """Sums whole numbers `[n]` over the workers; each has one voice, however many devices."""
    size = max(_FEW, 2 ** (len(values) - 1).bit_length())
    padded = np.pad(values.astype(np.int64), (0, size - len(values)))
    total = _summing(strategy, size)(tf.constant(padded))
    return strategy.experimental_local_results(total)[0].numpy()[: len(values)]


@functools.cache
def _summing(strategy: tf.distribute.Strategy, size: int) -> Any:
    # A collective operation has one type and one shape for ever.
    replicas = strategy.num_replicas_in_sync // worker_count(strategy)

    def replica(values: tf.Tensor) -> tf.Tensor:
        context: Any = tf.distribute.get_replica_context()
        first = context.replica_id_in_sync_group % replicas == 0
        own = tf.where(first, values, tf.zeros_like(values))
        (total,) = context.all_reduce(tf.distribute.ReduceOp.SUM, [own])
        return total

    return tf.function(
        lambda values: strategy.run(replica, (values,)),
        input_signature=[tf.TensorSpec([size], tf.int64)],
        autograph=False,
    )
