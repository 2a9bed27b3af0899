"""The processes of a job on several machines: which one this is. Needs no TensorFlow."""

import json
import os
from dataclasses import dataclass

from tfxfer.errors import UserError

_VARIABLE = "TF_CONFIG"
_ROLES = ("chief", "worker")


@dataclass(frozen=True)
class Worker:
    """One process of a job.

    Attributes:
        index: Its number, from 0.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether it is the one that writes, and speaks."""
        return self.index == 0


def this_worker(strategy: str = "auto") -> Worker:
    """Reads from `TF_CONFIG` which worker this process is.

    Launchers set it, such as Kubeflow's and Vertex AI's; by hand it is
    `{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}`. Where
    there is a `chief`, it is the first of all.

    Args:
        strategy: As `--strategy`; all but `auto` and `multiworker` are of one process.

    Returns:
        The worker; one of one if there is no `TF_CONFIG`.

    Raises:
        UserError: If `TF_CONFIG` is none, or asks for parameter servers.
    """
    text = os.environ.get(_VARIABLE, "")
    if strategy not in ("auto", "multiworker") or not text:
        return Worker()
    try:
        found = json.loads(text)
        cluster = found.get("cluster") or {}
        addresses = {role: len(cluster[role]) for role in cluster}
        task = found.get("task") or {}
        role, index = str(task.get("type", "worker")), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{_VARIABLE} must be JSON with cluster and task, and is {text[:80]!r}",
            'Write it as {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", '
            '"index": 0}}.',
        ) from error
    if others := sorted(set(addresses) - set(_ROLES)):
        raise UserError(
            f"{_VARIABLE} must name workers, and names {others[0]}",
            "Parameter servers and evaluators are not served: all workers train and evaluate "
            "together. Leave these out.",
        )
    if not addresses:
        return Worker()
    if role not in addresses or not 0 <= index < addresses[role]:
        raise UserError(
            f"The task of {_VARIABLE} must be one of its cluster, and is {role} {index}",
            "Give each process its own index.",
        )
    chiefs = addresses.get("chief", 0)
    return Worker(index + (chiefs if role == "worker" else 0), sum(addresses.values()))
