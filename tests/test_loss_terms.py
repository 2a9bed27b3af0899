"""Sums of distillation losses as text."""

from dataclasses import replace

import pytest

from tfxfer import losses
from tfxfer.errors import UserError
from tfxfer.losses import Term, parse_losses

NAMES = [name for name in losses.__all__ if name not in ("Term", "parse_losses")]


def test_reads_a_sum_of_losses():
    kd, hint, rkd = parse_losses(
        "kd(temperature=4) + 1e+3*hint(student=block2, teacher='a+b')+ 2 * rkd_angle(warmup=20)"
    )
    assert kd == Term("kd", options={"temperature": 4})
    assert hint == Term("hint", 1000.0, student="block2", teacher="a+b")
    assert rkd == Term("rkd_angle", 2.0, warmup=20)
    assert kd.function is losses.kd
    assert parse_losses("hard_label") == parse_losses(" 1*hard_label() ") == (Term("hard_label"),)
    assert hash(kd) == hash(replace(kd))


@pytest.mark.parametrize(
    "text",
    [
        "kd",
        "0.1*kd(temperature=4)",
        "1e+20*kd(temperature=0.3333333333333333)",
        "0*dkd(alpha=1,beta=8,temperature=4,warmup=20)",
        'hint(student="3",teacher=conv3/relu)',
        "hint(student=block2)+hint(student=block3)",
        '0.5*bounded_regression(margin=0.25)+cosine(teacher="x,y")+ofa(eps=1.1)',
    ],
)
def test_text_of_terms_reads_back(text):
    assert "+".join(map(str, parse_losses(text))) == text


def test_what_losses_need():
    def where(fact: str) -> set[str]:
        return {name for name in NAMES if getattr(Term(name), fact)}

    relations = {"rkd_distance", "rkd_angle", "similarity_preserving", "pkt"}
    assert where("relational") == relations | {"dist"}
    assert where("needs_labels") == {"dkd", "nkd", "ofa", "bounded_regression"}
    assert where("needs_equal_units") == {"hint", "cosine", "hierarchical_context"}
    equal = {"hint", "cosine", "hierarchical_context"}
    assert where("of_features") == relations | equal | {"attention_transfer", "nst"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kdd", "No loss is called 'kdd'. Did you mean .*kd"),
        ("hnt(student=a)", "Did you mean hint"),
        ("something_else", "There are attention_transfer"),
        ("", "A loss is missing"),
        ("kd+", "A loss is missing"),
        ("kd(temprature=4)", "no option 'temprature'. Did you mean temperature"),
        ("kd(y_true=4)", "no option 'y_true'"),
        ("hint(layer=a)", "no option 'layer'. .*student"),
        ("kd(temperature=hot)", "'temperature' of 'kd' must be a number, not 'hot'"),
        ("kd(temperature=true)", "must be a number, not True"),
        ("kd(temperature=0)", "'temperature' of 'kd' must be above 0"),
        ("kd(temperature=inf)", "finite"),
        ("dkd(beta=-1)", "'beta' of 'dkd' must be at least 0"),
        ("kd(warmup=soon)", "'warmup' of 'kd' must be a number"),
        ("kd(temperature)", "key=value"),
        ("kd(temperature=4", "key=value"),
        ("kd(temperature=4)*0.5", "a weight before the name"),
        ("-1*kd", "'weight' of 'kd' must be at least 0"),
        ("nan*kd", "'weight' of 'kd' must be at least 0 and finite"),
        ("half*kd", "weight of 'kd' must be a number, not 'half'"),
        ("kd+0.5*kd(temperature=2)", "gives 'kd' twice"),
        ("hint(student=a)+cosine+hint(student=a)", "'hint' twice for the same layers"),
        ("kd(student=block2)", "'kd' is a loss of outputs"),
        ("hint(student=3)", "'student' of 'hint' must be the name of a layer or stage, not 3"),
        ("kd(temperature=2,temperature=3)", "twice"),
    ],
)
def test_sums_that_cannot_be_read(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse_losses(text)
    assert "\n" not in str(error.value)
