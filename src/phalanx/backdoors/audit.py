"""Backdoor audit: what each defence lets through, and whom it wrongs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from phalanx.backdoors.defences import default_defences
from phalanx.backdoors.drill import Defence, Federation, edge_set
from phalanx.backdoors.report import write_audit
from phalanx.backdoors.search import (
    NO_ATTACK,
    AttackBudget,
    confirming_cells,
    harm_cells,
    search_cells,
    worst_attacker,
)
from phalanx.checks import require_finite_at_least
from phalanx.experiments import Records, Watch, load, measure
from phalanx.files import whole


@dataclass(frozen=True)
class Finding:
    """What an audit found of one defence; shares in [0, 1], means over seeds without the search."""

    defence: str
    """Which."""
    worst_attacker: str
    """The attacker of the search that got most through."""
    backdoor: float
    """Held-out edge cases that the model takes for the target after the worst attack."""
    backdoor_spread: float | None
    """Standard deviation of that over the seeds; None with one."""
    without_attack: float
    """The same without an attack."""
    main: float
    """Test accuracy after the worst attack."""
    main_without_attack: float
    """The same without an attack."""
    edge_learned: float
    """Held-out edge cases that are recognised where honest clients hold the edge cases, and nobody
    attacks."""
    rare_left_out: float | None
    """Honest clients with edge cases that the rule leaves out; None if it weighs coordinates."""
    usual_left_out: float | None
    """Other honest clients that it leaves out."""
    rare_shortened: float | None
    """Honest clients with edge cases that count less than half of a fair share."""
    usual_shortened: float | None
    """Other honest clients that do."""

    @property
    def let_through(self) -> float:
        """How much the worst attack adds to the share of edge cases taken for the target."""
        return self.backdoor - self.without_attack


@dataclass(frozen=True)
class Audit:
    """Audit of defences against edge-case backdoors."""

    findings: Sequence[Finding]
    """One for each defence, in the order that was given."""
    records: Records
    """Every run."""
    answer: str
    """The outcome in one sentence."""
    margin: float
    """What may be let through by a defence that is said to have held."""
    folder: Path | None
    """Holds `audit.html`, `audit.json` and the runs; None if nothing is written."""

    @property
    def held(self) -> list[str]:
        """Defences that let through no more than the margin, within the attacker's budget."""
        return [one.defence for one in self.findings if one.let_through <= self.margin]


def audit_backdoor(
    federation: Federation | None = None,
    defences: Mapping[str, Defence] | None = None,
    *,
    budget: AttackBudget | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    margin: float = 0.1,
    out: Path | str | None = None,
    jobs: int | None = None,
    watch: Watch | None = None,
    config: str | None = None,
) -> Audit:
    """Audits defences of a federation against an edge-case backdoor whose attacker knows them.

    With the first seed every attacker within the budget is tried against every defence. The worst
    of each is then run with the other seeds, which had no part in the choice: their mean is the
    figure. It bounds from below what an attacker can do, never from above. Beside it stand the
    main task, and what the defence does to honest clients that hold rare data.

    Args:
        federation: data, model, edge cases and clients; scikit-learn's digits and their own tail if
            not given.
        defences: by what they are called; those of `default_defences` if not given.
        budget: how often and with how many clients the attacker takes part, and what it may tune.
        seeds: at least two, the first of which is for the search.
        margin: what may be let through by a defence that is said to have held.
        out: a folder for the runs, `audit.json` and `audit.html`: the same call goes on where an
            audit was stopped or killed. Nothing is written if None.
        jobs: processes; as many as there are processors if not given.
        watch: called with the progress; see `phalanx.experiments.measure`.
        config: text that is kept in `out` as `config.yaml`: how to repeat the audit.

    Raises:
        ValueError: if arguments do not fit, before anything is run.
        RuntimeError: if a drill failed; the message names it.
    """
    federation, budget = federation or Federation(), budget or AttackBudget()
    defences = default_defences() if defences is None else defences
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(
            "seeds must be at least 2, and none twice: one for the search, the others for the "
            f"figures; got {list(seeds)}"
        )
    if not defences:
        raise ValueError("defences must name at least 1, got none")
    require_finite_at_least(0, margin=margin)
    for name, defence in defences.items():
        try:
            defence.rule.num_tolerated(federation.clients_per_round)
        except ValueError as error:
            raise ValueError(f"defences: {name}: {error}") from error
    if budget.attackers >= federation.clients_per_round:
        raise ValueError(
            f"attackers must be below the {federation.clients_per_round} clients of a round, got "
            f"{budget.attackers}"
        )
    edge_set(federation).require_fit(load(federation.data))
    folder = None if out is None else Path(out)

    def run(cells: Any) -> Records:
        found = measure(cells, folder, jobs=jobs, watch=watch, config=config)
        for one in found:
            if one.status == "failed":
                raise RuntimeError(f"the drill {one} failed: {one.reason}")
        return found

    searched = run(
        [
            *search_cells(federation, defences, budget, seeds[0]),
            *harm_cells(federation, defences, seeds[1:]),
        ]
    )
    confirmed = run(confirming_cells(searched, federation, defences, budget, seeds[1:]))
    records = Records([*searched, *confirmed])
    findings = [_finding(name, records) for name in defences]
    audit = Audit(findings, records, _answer(findings, margin), margin, folder)
    if folder is not None:
        with whole(folder / "audit.json") as beside:
            beside.write_text(_json(audit, seeds), encoding="utf-8")
        write_audit(folder / "audit.html", audit, federation, budget, defences, seeds)
    return audit


def _finding(defence: str, records: Records) -> Finding:
    worst = worst_attacker(records, defence)
    confirmed = records.where(part="confirmation", defence=defence)
    learned = records.where(part="learned", defence=defence)
    harm = records.where(part="harm", defence=defence)
    names = ("rare_left_out", "usual_left_out", "rare_shortened", "usual_shortened")
    return Finding(
        defence,
        worst,
        confirmed.mean("backdoor", attacker=worst),
        confirmed.spread("backdoor", attacker=worst),
        confirmed.mean("backdoor", attacker=NO_ATTACK),
        confirmed.mean("main", attacker=worst),
        confirmed.mean("main", attacker=NO_ATTACK),
        learned.mean("edge"),
        **{name: harm.mean(itemgetter(name)) for name in names},
    )


def _answer(findings: Sequence[Finding], margin: float) -> str:
    least = min(findings, key=lambda one: one.let_through)
    most = max(findings, key=lambda one: one.let_through)
    held = [one.defence for one in findings if one.let_through <= margin]
    first = (
        f"No defence held: the worst attackers found raise the backdoor by more than "
        f"{100 * margin:.0f} points everywhere"
        if not held
        else f"Within the attacker's budget {', '.join(held)} let through no more than "
        f"{100 * margin:.0f} points"
    )
    return (
        f"{first}; {least.defence} lets through least ({100 * least.let_through:.0f} points, "
        f"to {100 * least.backdoor:.0f} % of the edge cases), {most.defence} most "
        f"({100 * most.let_through:.0f} points, to {100 * most.backdoor:.0f} %, by "
        f"{most.worst_attacker}). A stronger attacker may exist."
    )


def _json(audit: Audit, seeds: Sequence[int]) -> str:
    content = {
        "answer": audit.answer,
        "margin": audit.margin,
        "held": audit.held,
        "search_seed": seeds[0],
        "seeds": list(seeds[1:]),
        "findings": [{**asdict(one), "let_through": one.let_through} for one in audit.findings],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
