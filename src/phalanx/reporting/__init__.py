"""Reports: tables for the terminal and one self-contained HTML file, from run folders."""

from phalanx.reporting.answer import answer
from phalanx.reporting.compare_runs import SAME_WEIGHTS, Row, compare_runs
from phalanx.reporting.detection import Detection, detection
from phalanx.reporting.frontier import plot_frontier, write_frontier
from phalanx.reporting.generation import audit_sentence, write_generation
from phalanx.reporting.html import write_report
from phalanx.reporting.link_plan import plot_link_plan, write_link_plan
from phalanx.reporting.page import Plot, Table, drawn, markdown_table, render_page
from phalanx.reporting.plan import write_plan
from phalanx.reporting.plots import (
    plot_accuracy,
    plot_loss,
    plot_metric,
    plot_residual,
    plot_seconds,
    plot_suspicion,
    plot_workers,
)
from phalanx.reporting.record import RunRecord, load_run
from phalanx.reporting.table import terminal_table

__all__ = [
    "SAME_WEIGHTS",
    "Detection",
    "Plot",
    "Row",
    "RunRecord",
    "Table",
    "answer",
    "audit_sentence",
    "compare_runs",
    "detection",
    "drawn",
    "load_run",
    "markdown_table",
    "plot_accuracy",
    "plot_frontier",
    "plot_link_plan",
    "plot_loss",
    "plot_metric",
    "plot_residual",
    "plot_seconds",
    "plot_suspicion",
    "plot_workers",
    "render_page",
    "terminal_table",
    "write_frontier",
    "write_generation",
    "write_link_plan",
    "write_plan",
    "write_report",
]
