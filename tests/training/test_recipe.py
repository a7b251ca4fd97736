"""Defaults reach only what a recipe has; the length of a run is a multiplication."""

import pytest

from equitools.core.errors import UsageError
from equitools.nn.schedules import share
from equitools.training.length import Length, asked_epochs, run_length
from equitools.training.recipe import apply_defaults, run_settings

MINI = {
    "epochs": 20,
    "batch_size": 64,
    "dino": {"out_dim": 1024},
    "clever": {"out_dim": 1024},
    "views": {"global": {"size": 32}, "local": {"size": 16, "count": 4}},
}


def test_defaults_fill_only_the_terms_and_groups_that_the_recipe_has():
    recipe = {"objective": {"name": "simsiam"}, "views": {"global": {"crop": [0.2, 1.0]}}}
    found = apply_defaults(recipe | {"defaults": MINI})
    assert found["objective"] == {"name": "simsiam"}
    assert "equivariance" not in found
    assert found["views"] == {"global": {"size": 32, "crop": [0.2, 1.0]}}
    assert found["epochs"] == 20


def test_what_is_said_beats_a_default():
    recipe = {"objective": {"name": "dino", "out_dim": 7}, "epochs": 3}
    found = apply_defaults(recipe | {"defaults": MINI})
    assert (found["objective"]["out_dim"], found["epochs"]) == (7, 3)


def test_a_duration_is_epochs_or_a_share():
    assert share(10, 200, "x") == 0.05
    assert share("10%", 3, "x") == pytest.approx(0.1)
    with pytest.raises(UsageError, match="warmup_epochs=10%"):
        share(10, 5, "recipe.schedule.warmup_epochs")
    with pytest.raises(UsageError, match="a duration is"):
        share("ten", 5, "recipe.schedule.warmup_epochs")


def test_epochs_become_steps_and_steps_win():
    base = {"epochs": 3.0, "steps": None, "batch_size": 64, "schedule": {"prelude": 0}}
    assert run_length(base, 640).steps == 30
    assert run_length(base | {"steps": 7}, 640).steps == 7
    assert run_length(base, 100).steps == 4  # 300 samples, and epochs join without a drop


def test_a_prelude_is_added_to_the_run_and_not_counted():
    run = Length(samples=100, batch_size=10, prelude=5, main=20)
    assert (run.steps, run.epochs) == (25, 2.0)
    assert (run.done(4), run.done(5), run.done(25)) == (0.0, 0.0, 1.0)
    assert (run.ramp(0), run.ramp(5)) == (0.0, 1.0)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"precision": "fp8"}, {"epochs": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UsageError):
        run_settings(**wrong)


def test_a_warm_up_as_long_as_the_run_is_not_too_long_for_a_lost_part_of_a_batch():
    recipe = {"epochs": 1.0, "steps": None, "batch_size": 64, "schedule": {"prelude": 0}}
    run = run_length(recipe, 1437)
    assert run.epochs < 1
    assert share(1, asked_epochs(recipe, run), "x") == 1
