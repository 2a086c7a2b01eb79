"""The recipe of Mime: what counts as reached, and by which data learning rates are chosen."""

from phalanx.experiments import Records
from phalanx.experiments.records import Record
from phalanx.reproduce import MimeRecipe, Scope
from phalanx.reproduce.federated_training import rounds_to


def test_a_target_is_reached_by_the_mean_of_two_rounds():
    assert rounds_to([0.5, 0.9, 0.6, 0.8, 0.8], 0.8) == 5
    assert rounds_to([0.5, 0.9, 0.8], 0.8) == 3
    assert rounds_to([0.5, 0.6], 0.8) == 3  # never


def found(recipe, scope, test):
    """Records in which the middle learning rate does best on validation data."""
    records = []
    for cell in recipe.cells(scope):
        method, rate = cell.labels["method"], cell.labels["rate"]
        middle = sorted(
            {one.labels["rate"] for one in recipe.cells(scope) if one.labels["method"] == method}
        )[1]
        values = {"validation": [float(rate == middle)] * 4, "test": test(method, rate == middle)}
        records.append(Record(cell.labels, values=values))
    return Records(records)


def test_rates_are_chosen_by_validation_data_and_claims_follow():
    """Curves that are high where validation data are low count for nothing."""
    recipe, scope = MimeRecipe().at("quick"), Scope("quick")

    def test(method, middle):
        if not middle:
            return [1.0] * 4
        return [0.5, 0.9, 0.9, 0.9] if method.startswith("Mime") else [0.5, 0.5, 0.9, 0.9]

    findings = recipe.findings(found(recipe, scope, test), scope)
    holds = [claim.holds for claim in findings.claims]
    assert holds == [[True]] * 5
    assert findings.answer.startswith("Mime, SGD was the first at 80 %")

    def alike(method, middle):
        return [0.5, 0.5, 0.9, 0.9]

    findings = recipe.findings(found(recipe, scope, alike), scope)
    assert [claim.holds for claim in findings.claims] == [[False]] * 4 + [[True]]
    assert findings.answer.startswith("A method without Mime was the first")
