"""Distillation losses: pure functions of a student and a teacher that return one loss an example.

Each takes tensors of any float type and returns `[batch]`, in float64 for a student in float64 and
in float32 otherwise; the mean is what the paper defines. The teacher gets no gradient. Options are
Python numbers, or scalar tensors or variables that a schedule moves.

| loss | needs | paper |
|---|---|---|
| `kd` | logits | Hinton et al. 2015 |
| `hard_label` | logits | Touvron et al. 2021 (DeiT) |
| `logit_mse` | logits or numbers | Ba and Caruana 2014 |
| `dkd` | logits, labels | Zhao et al. 2022 |
| `dist` | logits, a batch | Huang et al. 2022 |
| `logit_standardised_kd` | logits | Sun et al. 2024 |
| `nkd` | logits, labels | Yang et al. 2023 |
| `ofa` | logits, labels | Hao et al. 2023 |
| `binary_kd` | logits: a teacher of one class, a student of sigmoids | Beyer et al. 2020 |
| `multi_label_kd` | logits of sigmoids | Yang et al. 2023 |
| `bounded_regression` | numbers, targets | Chen et al. 2017 |
| `hint` | features or maps, as many channels | Romero et al. 2015 (FitNets) |
| `cosine` | features or maps, as many channels | Sanh et al. 2019 (DistilBERT) |
| `hierarchical_context` | maps, as many channels | Chen et al. 2021 (ReviewKD) |
| `attention_transfer` | maps | Zagoruyko and Komodakis 2017 |
| `nst` | maps | Huang and Wang 2017 |
| `rkd_distance`, `rkd_angle` | features, a batch | Park et al. 2019 |
| `similarity_preserving` | features, a batch | Tung and Mori 2019 |
| `pkt` | features, a batch | Passalis and Tefas 2018 |

`parse_losses` reads a weighted sum of them from text.
"""

from tfxfer.losses.logits import (
    binary_kd,
    bounded_regression,
    dist,
    hard_label,
    kd,
    logit_mse,
    logit_standardised_kd,
    multi_label_kd,
)
from tfxfer.losses.maps import attention_transfer, cosine, hierarchical_context, hint, nst
from tfxfer.losses.relations import pkt, rkd_angle, rkd_distance, similarity_preserving
from tfxfer.losses.target_class import dkd, nkd, ofa
from tfxfer.losses.terms import Term, parse_losses

__all__ = [
    "Term",
    "attention_transfer",
    "binary_kd",
    "bounded_regression",
    "cosine",
    "dist",
    "dkd",
    "hard_label",
    "hierarchical_context",
    "hint",
    "kd",
    "logit_mse",
    "logit_standardised_kd",
    "multi_label_kd",
    "nkd",
    "nst",
    "ofa",
    "parse_losses",
    "pkt",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
]
