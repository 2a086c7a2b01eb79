"""`phalanx audit-backdoor`: what a defence lets through, and whom it wrongs."""

from pathlib import Path

from phalanx.aggregation import Aggregator
from phalanx.cli.compare import plain, progress_of_cells
from phalanx.cli.console import console
from phalanx.cli.train import MakeModel, default_out
from phalanx.data import DataSource, Digits
from phalanx.models import MLP


def audit_backdoor(
    rules: list[Aggregator] | None = None,
    noise: float = 0.0,
    edge: Path | None = None,
    only_label: int | None = None,
    true_label: int = 7,
    target: int = 1,
    tail: float = 0.2,
    data: DataSource = Digits(),  # noqa: B008 - frozen
    model: MakeModel = MLP,
    pretraining: int = 500,
    honest_share: float = 0.0,
    num_clients: int = 100,
    clients_per_round: int = 10,
    alpha: float = 0.5,
    rounds: int = 21,
    epochs: int = 1,
    batch_size: int = 32,
    lr: float = 0.02,
    momentum: float = 0.9,
    num_clean: int = 100,
    every: int = 2,
    attackers: int = 1,
    radii: list[float] = [0.5, 1.0, 2.0, 4.0],  # noqa: B006 - never changed
    seeds: list[int] = [0, 1, 2],  # noqa: B006 - never changed
    margin: float = 0.1,
    jobs: int | None = None,
    out: Path | None = None,
) -> None:
    """Attacks defences by edge-case backdoors: what gets through, and whom do they wrong?

    The worst attacker against each defence is looked for with the first seed, and measured with
    the others. Every run is kept in the folder when it is done: the same command goes on where an
    audit was stopped or killed. The report names the threat model, and what was not tried.

    Example: phalanx audit-backdoor --rules+ Krum --rules+ Pipeline --rules.before+ NormClipping
    --rules.rule CoordinateMedian --data NpzFile --data.path mnist.npz --edge sevens.npz

    Args:
        rules: Robust rules as defences; `+` adds one, and its fields follow. Those of the
            literature if not given.
        noise: Standard deviation of noise on the aggregate of every rule given; no guarantee of
            privacy.
        edge: An .npz file of edge cases, as x, or as x_train and x_test; the tail of the training
            data if not given.
        only_label: Take the inputs of this class of the file only, which then has labels.
        true_label: The class that the edge cases belong to.
        target: The class that the attacker wants.
        tail: Share of the class that is taken for its tail, where no file is given.
        data: What is learned.
        model: A class that is called with the shape of an input and the number of classes.
        pretraining: Steps by which the model is trained before the drill; 0 for none.
        honest_share: Share of the attacker's edge cases that honest clients hold, with their true
            label.
        num_clients: Clients in all.
        clients_per_round: Clients that take part in a round.
        alpha: Concentration of the Dirichlet distribution by which classes are dealt to clients.
        rounds: Rounds of every drill.
        epochs: Passes of a client over its samples in a round.
        batch_size: Samples of a local step.
        lr: Learning rate of the local steps.
        momentum: Momentum of the local steps.
        num_clean: Clean samples that the attacker holds.
        every: Rounds from one attack to the next.
        attackers: Malicious clients of an attacked round.
        radii: Radii that the attacker tries, in norms of an honest update.
        seeds: At least two: the first is for the search, the others for the figures.
        margin: What may be let through by a defence that is said to have held, as a share.
        jobs: Processes, of one thread each; as many as there are processors if not given.
        out: Folder for the runs, audit.json and audit.html; a new one under runs/ if not given.
    """
    # Imported where it is used: matplotlib would make every command wait, `--help` too.
    from phalanx import backdoors
    from phalanx.experiments import labels

    folder = out or default_out().with_name("audit-" + default_out().name)
    edge_cases: backdoors.EdgeCases = (
        backdoors.LowDensity(true_label, target, tail)
        if edge is None
        else backdoors.NpzEdgeCases(edge, true_label, target, only_label)
    )
    if noise and not rules:
        raise ValueError(f"noise must go with rules, got {noise} and no rules")
    named = zip(labels(rules or []), rules or [], strict=True)
    defences = {name: backdoors.Defence(rule, noise) for name, rule in named}
    federation = backdoors.Federation(
        data,
        plain(model),
        edge_cases,
        honest_share,
        num_clients=num_clients,
        clients_per_round=clients_per_round,
        alpha=alpha,
        rounds=rounds,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        pretraining=pretraining,
        num_clean=num_clean,
    )
    with progress_of_cells() as watch:
        found = backdoors.audit_backdoor(
            federation,
            {"none": backdoors.Defence(), **defences} if rules else None,
            budget=backdoors.AttackBudget(every, attackers, radii),
            seeds=seeds,
            margin=margin,
            out=folder,
            jobs=jobs,
            watch=watch,
        )
    console.print(found.answer, markup=False)
    console.print(f"Report: {folder / 'audit.html'}", soft_wrap=True)
