"""HTML report of a backdoor audit: threat model, figures, worst case, and what was not tried."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phalanx.backdoors.drill import Defence, Federation, edge_set
from phalanx.backdoors.low_density import TailDensity
from phalanx.backdoors.search import AttackBudget, worst_attacker
from phalanx.experiments import line_plot, load, pivot
from phalanx.files import whole
from phalanx.reporting import Plot, Table, drawn, render_page
from phalanx.reporting.format import percent

if TYPE_CHECKING:
    from phalanx.backdoors.audit import Audit

NOT_TRIED = (
    "Attackers that read the honest messages of the round, or follow the rule's state from round "
    "to round.",
    "Trigger patterns, several backdoors at once, and targets other than the one named.",
    "Attackers that pull towards the others' models (the paper's proximal attack), split one "
    "update among several clients, or shrink their radius over the rounds.",
    "More malicious clients, more frequent attacks and more rounds than the budget says.",
    "Models, data and local training other than those of the drill.",
    "Defences on the final model, such as pruning or inspecting it.",
)
"""What an audit does not cover."""


def write_audit(
    path: Path,
    audit: "Audit",
    federation: Federation,
    budget: AttackBudget,
    defences: Mapping[str, Defence],
    seeds: Sequence[int],
) -> None:
    """Writes the report of an audit, as one file that loads nothing; whole or not at all."""
    page = render_page(
        "phalanx.backdoors",
        "audit.html.j2",
        title="Backdoor audit",
        kind="Phalanx audit",
        answer=audit.answer,
        origin="",
        threat=_threat(federation, budget, seeds),
        tables=[_found(audit), _harm(audit), _searched(audit), _defences(defences)],
        plots=drawn([_curves(audit, seeds)]),
        not_tried=NOT_TRIED,
        margin=percent(audit.margin),
    )
    with whole(path) as beside:
        beside.write_text(page, encoding="utf-8")


def _threat(
    federation: Federation, budget: AttackBudget, seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """The threat model, by heading."""
    splits, edge = load(federation.data), edge_set(federation)
    train, test = splits.train[:][0], splits.test[:][0]
    rarity = TailDensity().quantiles(train, test, edge.train).median().item()
    return {
        "Goal": {
            "edge cases": f"{edge.origin or 'given'}: {len(edge.train)} to train on, "
            f"{len(edge.test)} held out",
            "true class, and target": f"{edge.true_label}, {edge.target}",
            "rarity": f"{percent(rarity)} of the test inputs are rarer than the median edge case",
            "held by honest clients": percent(federation.honest_share),
        },
        "Knowledge": {
            "known": "model, broadcast, defence with its parameters, distribution of the data",
            "not known": "what honest clients send in the round; the server's noise",
        },
        "Budget": {
            "frequency": f"every {budget.every} rounds of {federation.rounds}, from the first on",
            "malicious clients": f"{budget.attackers} of {federation.clients_per_round} in an "
            "attacked round",
            "data": f"{federation.num_clean} clean samples, {len(edge.train)} edge cases",
            "tuned": f"{len(budget.candidates())} attackers tried against each defence with seed "
            f"{seeds[0]}, the worst one run with seeds {', '.join(map(str, seeds[1:]))}",
        },
        "Federation": {
            "data": repr(federation.data),
            "clients": f"{federation.num_clients}, Dirichlet({federation.alpha:g}), "
            f"{federation.clients_per_round} in a round",
            "local training": f"{federation.epochs} epochs in batches of {federation.batch_size}, "
            f"learning rate {federation.lr:g}, momentum {federation.momentum:g}",
            "model": getattr(federation.model, "__name__", repr(federation.model)),
        },
    }


def _found(audit: "Audit") -> Table:
    rows = tuple(
        (
            one.defence,
            percent(one.backdoor),
            None if one.backdoor_spread is None else percent(one.backdoor_spread),
            percent(one.without_attack),
            percent(one.main),
            percent(one.main_without_attack),
            "yes" if one.let_through <= audit.margin else "no",
            one.worst_attacker,
        )
        for one in audit.findings
    )
    headers = ("defence", "backdoor", "±", "no attack", "main", "no attack, main", "held?", "worst")
    caption = (
        "Shares of the held-out edge cases that the model takes for the target, and test accuracy, "
        "under the worst attacker that was found; means over the seeds that had no part in the "
        f"search. Held: no more than {percent(audit.margin)} more than without an attack."
    )
    return Table("What is let through", caption, headers, rows)


def _harm(audit: "Audit") -> Table:
    names = ("rare_left_out", "usual_left_out", "rare_shortened", "usual_shortened")
    rows = tuple(
        (
            one.defence,
            percent(one.edge_learned),
            *(None if (share := getattr(one, name)) is None else percent(share) for name in names),
        )
        for one in audit.findings
    )
    headers = (
        *("defence", "edge cases learned", "rare: left out", "others: left out"),
        *("rare: shortened", "others: shortened"),
    )
    caption = (
        "Nobody attacks, and some honest clients hold all the edge cases with their true label. "
        "Learned: held-out edge cases that the final model recognises. Left out, shortened to less "
        "than half of a fair share: clients with and without edge cases, asked of the rule on "
        "updates before the first round; a dash where the rule weighs coordinates, not clients."
    )
    return Table("Whom it wrongs", caption, headers, rows)


def _searched(audit: "Audit") -> Table:
    found = pivot(audit.records.where(part="search"), "attacker", "defence", "backdoor")
    caption = (
        "Backdoor accuracy with the seed of the search, by which the worst attackers were chosen: "
        "the largest of a column is too high by choice."
    )
    return found.table("The search", caption, "attacker", percent)


def _defences(defences: Mapping[str, Defence]) -> Table:
    rows = tuple((name, repr(one.rule), one.noise or None) for name, one in defences.items())
    caption = "As they were run. Noise on the aggregate is no guarantee of privacy."
    return Table("Defences", caption, ("name", "rule", "noise"), rows)


def _curves(audit: "Audit", seeds: Sequence[int]) -> Plot:
    lines = {}
    for one in audit.findings:
        worst = worst_attacker(audit.records, one.defence)
        found = audit.records.where(
            part="confirmation", defence=one.defence, attacker=worst, seed=seeds[1]
        )
        shares = [100 * share for share in found[0]["backdoors"]]
        lines[one.defence] = (range(1, len(shares) + 1), shares)
    caption = f"Under the worst attacker of each, seed {seeds[1]}."
    return line_plot("Backdoor accuracy", caption, lines, "rounds", "backdoor accuracy (%)")
