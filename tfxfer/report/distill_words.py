"""The words of a distillation: who teaches whom, on what, and how each student came out."""

from collections.abc import Iterator

from tfxfer.backbones import Backbone
from tfxfer.config import RunConfig
from tfxfer.data.parts import Part
from tfxfer.data.ready import ReadyData
from tfxfer.evaluate import HEADLINE, AnyEvaluation
from tfxfer.report.data_words import counted, opening_lines


def start_lines(
    config: RunConfig,
    data: ReadyData,
    student: Backbone,
    rest: Part | None,
    loss: str,
    steps: int,
    epochs: int,
    device: str,
) -> Iterator[str]:
    """Says what is about to run.

    Args:
        config: The settings, as they were given.
        data: What is learned from.
        student: The backbone of the student.
        rest: Examples without labels, if there are some.
        loss: What is learned of the teacher.
        steps: Batches in an epoch.
        epochs: Of each student.
        device: In words.
    """
    yield from opening_lines(config, data)
    if rest is not None:
        yield f"          without labels: {rest.examples} examples, {rest.origin}"
    yield f"teacher   {config.teacher or f'{config.backbone}, to be fine-tuned first'}"
    if config.assistant or config.generations > 1:
        between = config.assistant or f"{config.generations - 1} of the student's kind"
        yield f"between   {between}"
    yield (
        f"student   {config.student}, {student.count_params():,} parameters, "
        f"{counted(len(student.stages), 'stage')}, {student.contract.inputs}s {student.contract}"
    )
    alone = counted(config.seeds, "seed")
    yield f"loss      {loss}, and {config.alpha:g} times that on labels"
    yield (
        f"training  {counted(epochs, 'epoch')} of {counted(steps, 'step')}; {alone}, each beside "
        "labels alone"
    )
    yield f"device    {device}"


def student_line(name: str, evaluation: AnyEvaluation) -> str:
    """Says how a student came out.

    Args:
        name: Of the student.
        evaluation: On the test examples.
    """
    figure = HEADLINE[type(evaluation)]
    return f"{name}: test {figure} {getattr(evaluation, figure):.4f}"
