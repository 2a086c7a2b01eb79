"""HTML report of a private generator: the guarantee, what it does not count, and samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from torch import Tensor

from phalanx.files import whole
from phalanx.privacy import Domain, Generated, MembershipAudit
from phalanx.reporting.format import percent
from phalanx.reporting.page import Plot, Table, drawn, render_page
from phalanx.reporting.plots import COLOURS

_ACROSS = 8  # samples of a class in the picture
NOT_PROTECTED = (
    "The run's folder: checkpoints hold what the teachers know, and the seed, by which the noise "
    "can be taken off again.",
    "Other runs on the same records, such as those by which options were chosen: their budgets add "
    "to this one.",
    "Whole groups: who owns many records is protected as often as the records are many.",
    "The accuracy and the audit in this report, which look at real records.",
)
"""What the guarantee does not cover, beside what its sentence says."""


def write_generation(
    path: Path,
    found: Generated,
    samples: tuple[Float[Tensor, "n d"], Int[Tensor, " n"]],
    settings: Mapping[str, Any],
    accuracy: float | None,
    audit: MembershipAudit | None,
) -> None:
    """Writes the report of a private generator, as one file; whole or not at all.

    Args:
        path: the HTML file, in a folder that is there.
        found: the generator.
        samples: synthetic records and their classes.
        settings: how it was made, by name.
        accuracy: share of the real test records that a classifier of the samples gets right.
        audit: what a membership attack achieved; None if there was none.
    """
    page = render_page(
        "phalanx.reporting",
        "generation.html.j2",
        title="Private generator",
        kind="Phalanx generation",
        answer=found.statement[:1].upper() + found.statement[1:] + ".",
        origin="",
        settings=settings,
        worth=_worth(accuracy),
        audit=audit_sentence(audit, found.epsilon, found.relation) if audit else None,
        tables=_tables(found.domain, *samples),
        plots=drawn([*_pictures(found.domain, *samples), _spending(found)]),
        not_protected=NOT_PROTECTED,
    )
    with whole(path) as beside:
        beside.write_text(page, encoding="utf-8")


def audit_sentence(audit: MembershipAudit, epsilon: float, relation: str) -> str:
    """What a membership audit says of a claim, in a sentence.

    Adding or removing a record changes half of what replacing one does: the claim is doubled.
    """
    claim = epsilon if relation == "replace" else 2 * epsilon
    verdict = "contradicts" if audit.epsilon > claim else "does not contradict"
    return (
        f"Membership inference: {audit.num_correct} of {audit.num_guesses} guesses right, which "
        f"bounds epsilon under replacement from below by {audit.epsilon:.2f} with "
        f"{percent(audit.confidence)} confidence: that {verdict} the claim of {claim:.4g}. A "
        "stronger attacker may exist."
    )


def _worth(accuracy: float | None) -> str:
    if accuracy is None:
        return "No real test records were given: nothing is said of what the samples are worth."
    return (
        f"A classifier that saw the samples alone gets {percent(accuracy)} of the real test "
        "records right. Its training was fixed beforehand, and its last weights count."
    )


def _spending(found: Generated) -> Plot:
    def draw(ax: Axes) -> None:
        steps, spent = zip(*found.history, strict=True)
        ax.plot(steps, spent, color=COLOURS[0], marker="o", markersize=3.5)
        ax.set_xlabel("steps")
        ax.set_ylabel("epsilon spent")
        ax.set_ylim(bottom=0)

    return Plot(
        "The budget", "Epsilon of all releases so far.", "Epsilon over the steps of the run", draw
    )


def _pictures(domain: Domain, x: Tensor, y: Tensor) -> list[Plot]:
    if len(domain.shape) != 3:
        return []
    shown = range(min(len(domain.classes), 12))
    rows = [x[y == one][:_ACROSS] for one in shown]
    channels, height, width = domain.shape
    sheet = torch.ones(len(rows) * height, _ACROSS * width, channels)
    for number, images in enumerate(rows):
        for place, image in enumerate(images.view(-1, channels, height, width)):
            top, left = number * height, place * width
            sheet[top : top + height, left : left + width] = (image.permute(1, 2, 0) + 1) / 2

    def draw(ax: Axes) -> None:
        grey = channels != 3
        picture = sheet[:, :, 0] if grey else sheet
        ax.imshow(picture.numpy(), cmap="gray" if grey else None, vmin=0, vmax=1)
        names = [str(domain.classes[one])[:12] for one in shown]
        ax.set_yticks([(place + 0.5) * height for place in range(len(names))], names)
        ax.set_xticks([])
        ax.grid(False)

    caption = "The first samples of each class, a class a row."
    return [Plot("Samples", caption, "Synthetic images by class", draw, (5.6, 5.6))]


def _tables(domain: Domain, x: Tensor, y: Tensor) -> Sequence[Table]:
    if not domain.columns:
        return ()
    cells = domain.decode_table(x[:12])
    labels = [str(domain.classes[number]) for number in y[:12].tolist()]
    rows = tuple(zip(map(str, range(1, 13)), *cells.values(), labels, strict=False))
    headers = ("row", *cells, domain.label)
    return (Table("Samples", "The first synthetic rows.", headers, rows),)
