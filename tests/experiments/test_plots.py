import re

from phalanx.experiments import heat_map, line_plot
from phalanx.reporting import drawn


def test_lines_leave_out_what_was_not_measured_and_the_text_says_where_they_end():
    lines = {
        "Krum": ([1, 2, 3], [0.5, None, 0.75]),
        "stopped": ([], []),
        **{f"rule {number}": ([1, 2], [0.1, 0.2]) for number in range(9)},
    }
    plot = line_plot("Accuracy", "Higher is better.", lines, "rounds", "accuracy", log="xy")
    assert plot.alt.startswith("Accuracy: accuracy over rounds. In the end: Krum 0.75, rule 0 0.2")
    ((_, svg),) = drawn([plot])
    assert "Krum" in svg
    assert "stopped" in svg
    assert len(drawn([line_plot("Nothing", "", {"stopped": ([], [])}, "x", "y", log="xy")])) == 1


def test_a_heat_map_says_what_stands_in_every_cell():
    plot = heat_map("Accuracy", "", ["Mean"], ["ALIE", "worst"], [[0.9, None]], [["90", "n/a"]])
    assert plot.alt == "Heat map of Accuracy. Mean: ALIE 90 and worst n/a."
    ((_, svg),) = drawn([plot])
    assert re.search("url|pattern|hatch", svg)
