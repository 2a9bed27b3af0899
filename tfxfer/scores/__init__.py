"""Transferability scores: what features tell of labels, told without training on them.

Each is a pure function of arrays that returns one number, larger where more should transfer.
Compare the numbers of several backbones on the same examples, and only those of one score.

| score | needs | paper |
|---|---|---|
| `knn` | features, classes or numbers | Caron et al. 2021 |
| `linear_probe` | features, classes or numbers | Golub et al. 1979 |
| `logme` | features, classes or numbers | You et al. 2021 |
| `h_score` | features, classes | Bao et al. 2019 |
| `regularized_h_score` | features, classes | Ibrahim et al. 2022 |
| `transrate` | features, classes | Huang et al. 2022 |
| `gbc` | features, classes | Pándy et al. 2022 |
| `parc` | features, classes | Bolya et al. 2021 |
| `nleep` | features, classes | Li et al. 2021 |
| `leep` | probabilities of source classes, classes | Nguyen et al. 2020 |
| `nce` | source classes, classes | Tran et al. 2019 |

`neighbours.knn_predictions` and `probe.linear_probe_predictions` are what the first two say of each
example.

All compute in float64. Memory is that of a few copies of the features, and the order of examples
changes nothing but rounding, unless a score says otherwise.
"""

from tfxfer.scores.evidence import logme
from tfxfer.scores.neighbours import knn, parc
from tfxfer.scores.probe import linear_probe
from tfxfer.scores.separation import gbc, h_score, regularized_h_score, transrate
from tfxfer.scores.source_classes import leep, nce, nleep

__all__ = [
    "gbc",
    "h_score",
    "knn",
    "leep",
    "linear_probe",
    "logme",
    "nce",
    "nleep",
    "parc",
    "regularized_h_score",
    "transrate",
]
