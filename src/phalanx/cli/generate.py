"""`phalanx generate`: synthetic records with a differential privacy guarantee."""

from pathlib import Path
from typing import Any

from phalanx.cli.console import console, progress_bar
from phalanx.privacy import (
    Budget,
    DataLens,
    Synthesizer,
    audit_membership,
    downstream_accuracy,
    hold_out_pairs,
    read_private,
    write_synthetic,
)
from phalanx.privacy import generate as fit_generator
from phalanx.privacy.generation.output import check_output
from phalanx.training.interruption import graceful


def generate(
    data: Path,
    epsilon: float = 10.0,
    delta: float = 1e-5,
    method: Synthesizer = DataLens(),  # noqa: B008 - frozen
    classes: list[Any] | None = None,
    label: str | None = None,
    domain: Path | None = None,
    samples: int = 10000,
    class_shares: list[float] | None = None,
    audit_pairs: int = 0,
    seed: int | None = None,
    folder: Path | None = None,
    out: Path = Path("synthetic.npz"),
) -> None:
    """Fits a differentially private generator, and writes synthetic records.

    The same command goes on where it was stopped or killed, ends with the same records, and spends
    its budget once. The folder of the run must be kept as private as the data; the synthetic
    records may be published.

    Example: phalanx generate data.npz --epsilon 10 --classes [0,1,2,3,4,5,6,7,8,9] --out
    synthetic.npz

    Args:
        data: An .npz file with x_train and y_train, or a CSV table; its test records, if it has
            any, say what the synthetic ones are worth.
        epsilon: What the run may spend in all.
        delta: Probability of a larger loss of privacy; well below one over the number of records.
        method: How records are made; ClassMoments is much the simplest, try it first.
        classes: The labels, which are public; looked up in the data if not given, and then told.
        label: The column of a table that holds the class.
        domain: A JSON file with the values or the two bounds of a table's columns, which are
            public; looked up in the data if not given, and then told.
        samples: Synthetic records to write.
        class_shares: Public shares of the classes; equal ones if the method does not estimate them.
        audit_pairs: Pairs of records of which coins leave one out, for a membership attack on the
            generator; 0 for none.
        seed: Of all randomness, the noise among it, so that it must be a secret; one from the
            system's entropy, kept in the folder, if not given.
        folder: For the run and its report; named after the file to write if not given.
        out: The file to write: .npz for images and rows of numbers, .csv for tables.
    """
    # Imported where it is used: matplotlib would make every command wait, `--help` too.
    from phalanx.reporting import audit_sentence, write_generation

    budget = Budget(epsilon, delta)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    records = read_private(data, label=label, classes=classes, domain=domain)
    check_output(out, records.domain)
    if delta * len(records.x) >= 1:
        raise ValueError(
            f"delta must be below one over the {len(records.x)} records, got {delta}: with it, a "
            "record could be published as it is"
        )
    place = folder or out.with_suffix(".run")
    used, pairs = records, None
    if audit_pairs:
        # Coins follow from a seed that is known, so that the command goes on where it stopped.
        used, pairs = hold_out_pairs(records, audit_pairs, seed or 0)
    with progress_bar() as bar, graceful() as asked:
        task = bar.add_task("generator", total=None, note="")

        def watch(done: int, steps: int, spent: float) -> None:
            note = f"epsilon {spent:.3g} of {epsilon:g} spent"
            bar.update(task, completed=done, total=steps, note=note)
            if bar.disable:
                console.print(f"step {done} of {steps}: {note}", soft_wrap=True)

        found = fit_generator(
            used, method, budget, seed=seed, folder=place, watch=watch, stop=asked
        )
    x, y = found.sample(samples, class_shares)
    write_synthetic(out, records.domain, x, y)
    accuracy = None if records.x_test is None else downstream_accuracy(x, y, records)
    audit = audit_membership(records, pairs, x, y, delta=delta) if pairs else None
    settings = {
        "data": f"{data}: {len(used.x)} records of {records.domain.num_features} numbers",
        "method": repr(method),
        "steps": found.steps,
        "samples": f"{samples}, in {out}",
    }
    write_generation(place / "report.html", found, (x, y), settings, accuracy, audit)
    console.print(found.statement[:1].upper() + found.statement[1:] + ".", markup=False)
    if accuracy is not None:
        console.print(f"A classifier of the samples gets {accuracy:.1%} of the test records right.")
    if audit:
        told = audit_sentence(audit, found.epsilon, found.relation)
        console.print(told, soft_wrap=True, markup=False)
    console.print(f"Samples: {out}; report: {place / 'report.html'}", soft_wrap=True, markup=False)
