"""What is said of the phases of a training."""

from typing import Any

from tfxfer.report.phase_words import phase_lines, phase_table
from tfxfer.training.loop import PhaseResult


def phase(name, epochs=2, **changes: Any) -> PhaseResult:
    usual: dict[str, Any] = {
        "best_epoch": min(1, epochs),
        "loss": 0.5,
        "train_metric": 0.9,
        "val_loss": 0.6,
        "metric": "accuracy",
        "val_metric": 0.8,
        "unmoved": (),
        "kept": True,
        "seconds": 1.0,
    }
    return PhaseResult(name, epochs, **{**usual, **changes})


def diverged(name) -> PhaseResult:
    nothing = dict.fromkeys(("loss", "train_metric", "val_loss", "val_metric"))
    return phase(name, 2, best_epoch=0, kept=False, **nothing)


def test_the_last_phase_that_stands_says_train_against_validation():
    worse = phase("all", kept=False, loss=0.1)
    said = list(phase_lines([phase("head", epochs=0), phase("+block2", loss=0.4), worse]))
    assert said == [
        "train against validation, as the best epoch of +block2 ran: loss 0.4000 and 0.6000, "
        "accuracy 0.9000 and 0.8000"
    ]
    (line,) = phase_lines([phase("head", epochs=0), worse])
    assert line.startswith("train against validation, head solved: loss 0.5000 and 0.6000")


def test_every_fold_says_it():
    folds = [phase("head", epochs=0, loss=0.1), phase("all"), phase("head", epochs=0), phase("all")]
    assert len(list(phase_lines(folds))) == 2


def test_a_phase_that_diverged_is_named():
    phases = [phase("head"), diverged("all")]
    assert list(phase_lines(phases))[1].startswith("phase all diverged in epoch 2 and was undone")
    kept = phase_table(phases).columns[6]
    assert list(kept.cells) == ["yes", "undone"]
