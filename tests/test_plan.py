"""Plans of fine-tuning: recipes, changes, files, and what is refused."""

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from tfxfer.errors import UserError
from tfxfer.plan import (
    Phase,
    Plan,
    check_plan,
    fastai,
    full,
    gradual,
    head,
    is_file,
    last_k,
    leaves_choice,
    lp_ft,
    make_plan,
    read_plan,
    surgical,
    with_layer_decay,
    with_patience,
    with_schedule,
    write_plan,
)

STAGES = ("stem", "block1", "head")
LONG = ("stem", "block1", "block2", "block3", "head")
RECIPES = ("gradual", "lp_ft", "full", "head", "last_k(k=2)", "surgical", "fastai")


def phase(**changes) -> Phase:
    given: dict[str, Any] = {"name": "some", "stages": STAGES, "epochs": 2, "learning_rate": 1e-3}
    return Phase(**(given | changes))


def test_gradual_unfreezes_from_the_head_down():
    assert gradual(STAGES, epochs=4, learning_rate=0.3) == (
        Phase("head", ("head",), 4, 0.3),
        Phase("+block1", ("block1", "head"), 4, 0.3 / 10),
        Phase("+stem", ("stem", "block1", "head"), 4, 0.3 / 10),
    )


def test_lp_ft_solves_the_head_and_trains_all():
    assert lp_ft(STAGES, 4, 0.3) == (
        Phase("head", ("head",), 0, 0.3, solved=True),
        Phase("all", STAGES, 4, 0.3 / 10),
    )


def test_full_and_head():
    assert full(STAGES, 4, 0.3) == (Phase("all", STAGES, 4, 0.3 / 10),)
    assert head(STAGES, 4, 0.3) == (Phase("head", ("head",), 4, 0.3),)


def test_last_k_and_surgical_train_the_head_first():
    first = Phase("head", ("head",), 4, 0.3)
    assert last_k(LONG, 4, 0.3, 2) == (
        first,
        Phase("+block2", ("block2", "block3", "head"), 4, 0.3 / 10),
    )
    # In the order of the model, the head once.
    assert surgical(LONG, 4, 0.3, ["head", "block2", "stem"]) == (
        first,
        Phase("+stem+block2", ("stem", "block2", "head"), 4, 0.3 / 10),
    )
    with pytest.raises(ValueError, match="from 1 to 4, received 5"):
        last_k(LONG, 4, 0.3, 5)
    for chosen in ([], ["head"], ["block7"]):
        with pytest.raises(ValueError, match=r"block3'\], received"):
            surgical(LONG, 4, 0.3, chosen)


def test_fastai_halves_the_rate_and_lowers_it_to_the_input():
    first, second = fastai(LONG, 4, 2e-3)
    assert (first.stages, first.epochs, first.rates) == (("head",), 1, (2e-3,))
    assert (second.stages, second.epochs) == (LONG, 4)
    np.testing.assert_allclose(second.rates, 1e-3 * 0.01 ** (np.arange(4, -1, -1) / 4))
    assert {p.schedule for p in (first, second)} == {"one_cycle"}
    assert [p.warmup for p in (first, second)] == [0.99, 0.3]
    assert {p.patience for p in (first, second)} == {0}


@pytest.mark.parametrize("recipe", [gradual, lp_ft, full, head, fastai])
def test_a_head_alone_has_plans_too(recipe):
    phases = recipe(("head",), 4, 1e-3)
    check_plan(phases, ("head",))
    assert {p.stages for p in phases} == {("head",)}
    assert len(phases) == (2 if recipe is fastai else 1)


def test_layer_decay_goes_by_the_distance_from_the_head():
    plan = with_layer_decay(gradual(LONG, 1, 1.0), LONG, 0.5)
    assert [p.rates for p in plan] == [
        (1.0,),
        pytest.approx((0.05, 0.1)),
        pytest.approx((0.025, 0.05, 0.1)),
        pytest.approx((0.0125, 0.025, 0.05, 0.1)),
        pytest.approx((0.00625, 0.0125, 0.025, 0.05, 0.1)),
    ]
    (_, chosen) = with_layer_decay(surgical(LONG, 1, 1.0, ["stem"]), LONG, 0.5)
    assert chosen.rates == pytest.approx((0.00625, 0.1))
    (_, scaled) = with_layer_decay(fastai(LONG, 1, 1.0), LONG, 0.5)
    np.testing.assert_allclose(
        scaled.rates, fastai(LONG, 1, 1.0)[1].rates * 0.5 ** np.arange(5)[::-1]
    )
    assert with_layer_decay(plan, LONG, 1.0) == plan
    for decay in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="decay in"):
            with_layer_decay(plan, LONG, decay)


def test_schedule_is_for_phases_that_train():
    solved, trained = with_schedule(lp_ft(STAGES, 4, 1e-3), "cosine", 0.1)
    assert solved == lp_ft(STAGES, 4, 1e-3)[0]
    assert (trained.schedule, trained.warmup) == ("cosine", 0.1)
    (stepped,) = with_schedule(full(STAGES, 4, 1e-3), "step", 0.08)
    assert stepped.milestones == (0.3, 0.6, 0.9)
    assert with_schedule([stepped], "constant")[0].milestones == ()
    assert with_schedule([stepped], "one_cycle")[0].warmup == 0.25
    assert with_schedule([stepped], "one_cycle", 0.4)[0].warmup == 0.4


def test_patience_is_for_phases_that_may_stop():
    both = (phase(), phase(patience=0))
    assert [p.patience for p in with_patience(both, 7)] == [7, 0]


@pytest.mark.parametrize("text", RECIPES)
def test_every_recipe_covers_every_stage_or_names_it_as_frozen(text):
    plan = make_plan(text, LONG, 4, 1e-3, chosen=["block1"])
    plan.check(LONG)
    trained = {name for p in plan.phases for name in p.stages}
    assert tuple(name for name in LONG if name not in trained) == plan.frozen
    assert not is_file(text)
    assert leaves_choice(text) == (text == "surgical")


def test_options_reach_the_recipe():
    assert make_plan("gradual", LONG, 4, 1e-3) == Plan(gradual(LONG, 4, 1e-3))
    assert make_plan("head", LONG, 4, 1e-3).frozen == LONG[:-1]
    assert make_plan("last_k", LONG, 4, 1e-3).phases == last_k(LONG, 4, 1e-3, 1)
    assert make_plan("last_k(k=3)", LONG, 4, 1e-3).phases == last_k(LONG, 4, 1e-3, 3)
    named = surgical(LONG, 4, 1e-3, ["stem", "block2"])
    for signs in ("stem|block2", "block2+stem", "'stem, block2'", "stem;block2"):
        plan = make_plan(f"surgical(stages={signs})", LONG, 4, 1e-3, chosen=["block3"])
        assert plan == Plan(named, ("block1", "block3"))
    assert make_plan("surgical", LONG, 4, 1e-3, ["stem", "block2"]).phases == named


def test_a_stage_found_by_a_pattern_may_be_named():
    stages = ("conv|bn", "dense+", "head")
    assert make_plan("surgical(stages=conv|bn)", stages, 1, 1e-3).frozen == ("dense+",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gradul", "no plan 'gradul'.*Did you mean gradual"),
        ("LP-FT", "Did you mean lp_ft"),
        ("surgery", "Did you mean surgical"),
        ("xyz", "There are gradual, lp_ft, full, head, last_k, surgical, fastai"),
        ("nowhere.json", "nowhere.json cannot be read: No such file"),
        ("gradual(k=2)", "has no option 'k'. It takes none"),
        ("last_k(n=2)", "has no option 'n'. It takes k"),
        ("last_k(k=9)", "k from 1 to 4"),
        ("last_k(k=0)", "k from 1 to 4"),
        ("last_k(k=two)", "k from 1 to 4"),
        ("surgical(stages=block7)", "no stage 'block7'.*stem, block1, block2, block3"),
        ("last_k(2)", r"Write last_k\(k=2\)"),
        ("last_k(k=2", r"Write last_k\(k=2\)"),
        ("surgical(stages=stem,block2)", r"or surgical\(stages=block1\|block2\)"),
        ("surgical(stages=head)", "names no stage of the backbone"),
    ],
)
def test_mistakes_are_told(text, says):
    with pytest.raises(UserError, match=says):
        make_plan(text, LONG, 4, 1e-3)


@pytest.mark.parametrize("text", ["last_k", "surgical"])
def test_a_backbone_without_stages_has_none_to_unfreeze(text):
    with pytest.raises(UserError, match="it has none"):
        make_plan(text, ("head",), 4, 1e-3)


def test_surgical_must_be_told_its_stages():
    with pytest.raises(ValueError, match="Expected a stage among"):
        make_plan("surgical", LONG, 4, 1e-3)


@pytest.mark.parametrize("text", RECIPES)
def test_a_file_says_exactly_what_was_written(text, tmp_path):
    plan = make_plan(text, LONG, 4, 1 / 3e3, chosen=["block1"])
    plan = replace(plan, phases=with_layer_decay(plan.phases, LONG, 0.7))
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    assert is_file(str(tmp_path / "plan.json"))
    assert make_plan(str(tmp_path / "plan.json"), LONG, 99, 99.0) == plan


def test_a_file_is_one_field_a_line(tmp_path):
    given = Phase(
        'the "odd" é', ("stem", "head"), 0, (1e-5, 1e-3), "step", 0.1, (0.5,), 0, "freeze", steps=9
    )
    write_plan(Plan((given,), ("block1",)), tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert '      "stages": ["stem", "head"],' in lines
    assert '      "learning_rate": [1e-05, 0.001],' in lines
    assert lines[-2] == '  "frozen": ["block1"]'
    assert len(lines) == len(fields(Phase)) + 7
    assert read_plan(tmp_path / "plan.json") == Plan((given,), ("block1",))


def test_a_hand_written_file_may_be_short(tmp_path):
    path = tmp_path / "mine"
    path.write_text(
        '{"phases": [{"name": "all", "stages": ["stem", "block1", "head"], "epochs": 2,'
        ' "learning_rate": 1}]}'
    )
    (read,) = make_plan(str(path), STAGES, 9, 9.0).phases
    assert read == Phase("all", STAGES, 2, 1.0)
    assert type(read.learning_rate) is float


def written(tmp_path, **changes):
    entry = {"name": "all", "stages": list(STAGES), "epochs": 2, "learning_rate": 1e-3} | changes
    entry = {key: value for key, value in entry.items() if value is not ...}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"phases": [entry]}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": "two"}, "Phase 'all': expected 'epochs' as a whole number, received \"two\""),
        ({"epochs": 2.0}, "'epochs' as a whole number, received 2.0"),
        ({"epochs": True}, "'epochs' as a whole number, received true"),
        ({"stages": "head"}, "'stages' as a list, of a string each"),
        ({"stages": ["head", 1]}, "'stages' as a list, of a string each"),
        ({"learning_rate": None}, "'learning_rate' as a number or a list, of a number each"),
        ({"learning_rate": [1e-3, "x", 1]}, "'learning_rate' as a number or a list"),
        ({"learning_rate": 10**400}, "'learning_rate' as a number"),
        ({"solved": 1}, "'solved' as true or false"),
        ({"learning_rate": ...}, "Phase 'all': missing key 'learning_rate'"),
        ({"name": ...}, "Phase 1: missing key 'name'"),
        ({"name": 3}, "Phase 1: expected 'name' as a string"),
        ({"epoch": 3}, "Phase 'all': unknown key 'epoch'"),
        ({"learning_rate": float("inf")}, "Phase 'all': expected learning rates above 0"),
        ({"schedule": "polynomial"}, "Phase 'all': expected a schedule among"),
        ({"stages": ["stem", "head"]}, r"missing \['block1'\]"),
        ({"stages": [*STAGES, "block9"]}, r"Phase 'all': .*received \['block9'\]"),
        ({"epochs": 0, "solved": True}, "Phase 'all': expected to solve 'head' alone"),
    ],
)
def test_mistakes_in_a_file_name_phase_and_key(changes, says, tmp_path):
    path = written(tmp_path, **changes)
    with pytest.raises(UserError, match=says) as told:
        make_plan(path, STAGES, 1, 1e-3)
    assert path in str(told.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "must be a JSON file"),
        ("[]", "The plan: expected an object, received \\[\\]"),
        ("{}", "The plan: missing key 'phases'"),
        ('{"phases": {}}', "'phases' as a list"),
        ('{"phases": [7]}', "Phase 1: expected an object, received 7"),
        ('{"phases": []}', "at least one phase"),
        ('{"phases": [], "freeze": []}', "unknown key 'freeze'"),
        ('{"phases": [], "frozen": "stem"}', "'frozen' as a list"),
        ('{"phases": [], "phases": []}', "'phases' is given twice"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(text, says, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        make_plan(str(path), STAGES, 1, 1e-3)


def test_stages_may_be_frozen_on_purpose():
    check_plan([phase(stages=("head",))], STAGES, whole=False)
    check_plan([phase(stages=("head",))], STAGES, frozen=["stem", "block1"])
    for frozen, says in (
        (("stem",), r"missing \['block1'\]"),
        (("stem", "block1", "head"), r"\['head'\] as both"),
        (("stem", "block1", "block9"), r"received \['block9'\]"),
    ):
        with pytest.raises(ValueError, match=says):
            Plan((phase(stages=("head",)),), frozen).check(STAGES)


@pytest.mark.parametrize(
    ("phases", "says"),
    [
        ([], "at least one phase"),
        ([("all", STAGES), ("odd", ("block7",))], "Phase 'odd'.*block7"),
        ([("all", STAGES), ("twice", ("head", "head"))], "Phase 'twice'.*each stage once"),
        ([("all", STAGES), ("none", ())], "Phase 'none'"),
        ([("all", STAGES), ("all", STAGES)], "Phase 'all'.*name of its own"),
        ([("some", ("stem", "head"))], r"missing \['block1'\]"),
    ],
)
def test_bad_plans_are_refused_by_name(phases, says):
    with pytest.raises(ValueError, match=says):
        check_plan([Phase(name, stages, 1, 1e-3) for name, stages in phases], STAGES)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learning_rate": (1e-3, 1e-3)}, "one learning rate, or one for each of"),
        ({"learning_rate": 0.0}, "learning rates above 0 and finite"),
        ({"learning_rate": float("nan")}, "learning rates above 0 and finite"),
        ({"learning_rate": (1e-3, 1e-3, -1.0)}, "learning rates above 0 and finite"),
        ({"schedule": "polynomial"}, "a schedule among"),
        ({"warmup": 1.0}, r"a warmup in \[0, 1\)"),
        ({"warmup": float("nan")}, r"a warmup in \[0, 1\)"),
        ({"schedule": "step"}, "milestones where"),
        ({"milestones": (0.5,)}, "milestones where"),
        ({"schedule": "step", "milestones": (0.5, 0.5)}, "milestones that rise"),
        ({"schedule": "step", "milestones": (0.5, 1.0)}, "milestones that rise"),
        ({"schedule": "step", "warmup": 0.6, "milestones": (0.5,)}, "milestones that rise"),
        ({"patience": -1}, "a patience of at least 0"),
        ({"bn": "some"}, "bn among"),
        ({"epochs": 0}, "either epochs, or steps, or solved"),
        ({"epochs": -1}, "either epochs, or steps, or solved"),
        ({"steps": 5}, "either epochs, or steps, or solved"),
        ({"solved": True}, "either epochs, or steps, or solved"),
    ],
)
def test_a_phase_has_values_in_their_range(changes, says):
    with pytest.raises(ValueError, match=f"Phase 'some': expected {says}"):
        phase(**changes)


def test_rates_are_one_a_stage():
    assert phase().rates == (1e-3,) * 3
    assert phase(learning_rate=(1e-5, 1e-4, 1e-3)).rates == (1e-5, 1e-4, 1e-3)
