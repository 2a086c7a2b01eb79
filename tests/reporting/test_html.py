import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from phalanx.reporting import (
    answer,
    compare_runs,
    load_run,
    plot_accuracy,
    plot_loss,
    plot_suspicion,
    plot_workers,
    terminal_table,
    write_report,
)
from phalanx.reporting.plots import worker_states
from phalanx.reporting.svg import inline_svg

VOID = {"meta", "br", "hr", "img", "link", "input"}
NASTY = "<script>alert(1)</script> $x_1$ \"quoted\" & 'more' {{ 7*7 }} ∑ 模型"


class Page(HTMLParser):
    """Checks that what opens closes, and collects what a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.svgs: list[dict[str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.look(tag, dict(attributes))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.look(tag, dict(attributes))

    def look(self, tag, attributes):
        self.loaded += [attributes[n] for n in ("src", "href", "xlink:href") if n in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.svgs += [attributes] if tag == "svg" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def runs(make_run):
    w = torch.tensor([1.0, -4.0, 2.0])
    liars = {"byzantine": (1, 4)}
    folders = [
        make_run("honest"),
        make_run("mean", accuracy=0.1, weights={"w": w + 1}, **liars),
        make_run("draco", title="_DRACO $c$", suspects=(1, 4), residual=1e-7, **liars),
        make_run("repetition", suspects=(1, 4), residual=0.0, missing={"3": "late"}, **liars),
    ]
    return [load_run(folder) for folder in folders]


def written(records, path, **options):
    write_report(records, path, **options)
    return path.read_text(encoding="utf-8")


def test_the_page_stands_alone_and_is_whole(runs, tmp_path):
    text = written(runs, tmp_path / "new" / "report.html")
    page = Page(text)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.loaded)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    references = {link[1:] for link in page.loaded if link.startswith("#")}
    assert references | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert len(page.svgs) == page.tags.count("figure") == 4 + 3
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.svgs)
    assert page.tags.count("table") == 2
    assert list(tmp_path.glob("new/*")) == [tmp_path / "new" / "report.html"]


def test_the_first_sentence_is_the_answer(runs, tmp_path):
    text = written(runs, tmp_path / "report.html")
    first = text.index('<p class="answer">')
    assert html.escape(answer(runs, compare_runs(runs)), quote=True) in text[first : first + 500]
    assert "arxiv.org/abs/1803.09877" in text


def test_a_regression_has_a_table_and_a_plot_of_its_metric(make_run, tmp_path):
    found = {"test_loss": 0.25, "test_mae": 0.125, "test_accuracy": None}
    record = load_run(make_run("a", accuracy=None, evaluation=found))
    write_report([record], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Test mae over rounds. Last values: a 0.125." in page
    assert "test mae 0.125, test loss 0.25" in page
    console = Console(width=80, file=io.StringIO())
    console.print(terminal_table(compare_runs([record])))
    assert "mae" in console.file.getvalue()
    assert "accuracy" not in console.file.getvalue()


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    assert written(runs, tmp_path / "a.html") == written(runs, tmp_path / "b.html")


def test_any_text_is_shown_and_never_obeyed(make_run, tmp_path):
    folder = make_run(
        "a&b <c>", title=NASTY, stopped=NASTY, attack=NASTY, byzantine=(1,), suspects=(1,)
    )
    (folder / "config.yaml").write_text(NASTY)
    (folder / "env.json").write_text(json.dumps({NASTY: NASTY}))
    other = make_run("other")
    text = written([load_run(folder), load_run(other)], tmp_path / "r.html", title=NASTY)
    page = Page(text)
    assert "script" not in page.tags
    assert sum(NASTY in words for words in page.words) >= 8


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_without_rounds_has_a_report_without_plots(make_run, tmp_path, finished):
    folder = make_run("a", rounds=0, accuracy=None, finished=finished)
    page = Page(written([load_run(folder)], tmp_path / "r.html"))
    assert "figure" not in page.tags
    assert ("phalanx train --resume " + str(folder) in page.words) is not finished


def test_losses_that_are_not_finite_and_single_rounds_are_drawn(make_run, tmp_path):
    lost = make_run("lost", loss=None)
    single = make_run("single", rounds=1)
    Page(written([load_run(lost), load_run(single)], tmp_path / "r.html"))
    Page(written([load_run(lost)], tmp_path / "r.html"))


def test_a_reference_from_outside_is_part_of_the_report(runs, tmp_path):
    text = written(runs[1:], tmp_path / "r.html", reference=runs[0])
    assert "of the run without Byzantine workers" in text
    assert "honest <small>(reference)</small>" in text


def test_a_failed_write_leaves_the_old_report(runs, make_run, tmp_path):
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="records must hold at least one run, got none"):
        write_report([], path)
    unfinished = load_run(make_run("u", finished=False))
    with pytest.raises(ValueError, match="cannot be the reference"):
        write_report(runs, path, reference=unfinished)
    assert path.read_text() == "old"


def test_the_worker_strip_shows_what_happened(make_run):
    folder = make_run("a")
    (folder / "metrics.jsonl").write_text(
        '{"step": 2, "byzantine": [1, 4, 5], "suspects": [1, 2], "outliers": [6, 4],'
        ' "missing": {"5": "dead"}}\n'
        '{"step": 4, "byzantine": [], "suspects": [], "missing": {}}\n'
    )
    record = load_run(folder)
    grid = worker_states(record)
    assert grid.shape == (9, 3)
    np.testing.assert_array_equal(grid[:, 0], [0, 2, 4, 0, 5, 1, 6, 0, 0])
    assert not grid[:, 1:].any()
    axes = Figure().add_subplot()
    plot_workers(record, axes)
    assert axes.get_images()[0].get_extent() == [2.5, 5.5, 8.5, -0.5]


def test_plots_draw_on_the_axes_given(runs):
    axes = Figure().add_subplot()
    plot_accuracy(runs, axes)
    assert [line.get_ydata()[-1] for line in axes.lines] == [0.964, 0.1, 0.964, 0.964]
    assert axes.get_xlabel() == "rounds completed"
    assert axes.get_ylabel() == "test accuracy (%)"


def test_suspicion_is_a_map_of_workers_by_rounds_with_a_mark_at_every_exclusion(make_run, tmp_path):
    folder = make_run("a", suspicion={2: 0.25, 5: 0.75}, excluded={5: 3})
    record = load_run(folder)
    ax = Figure().subplots()
    plot_suspicion(record, ax)
    (image,) = ax.images
    assert image.get_array()[:, 0].tolist() == [0, 0, 0.25, 0, 0, 0.75, 0, 0, 0]
    assert image.get_array().shape == (9, 4)
    assert ax.lines[0].get_xydata().tolist() == [[3, 5]]
    write_report([record], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert all(link.startswith(("#", "data:image/png")) for link in page.loaded)
    assert "highest at the end 0.75, of worker 5; excluded: 5." in text
    assert "worker 5 (after 3 rounds)" in text


def test_no_map_where_nobody_is_under_suspicion(make_run, tmp_path):
    write_report([load_run(make_run("a"))], tmp_path / "report.html")
    assert "Suspicion" not in (tmp_path / "report.html").read_text()


def diverged(make_run):
    """A run whose loss grows without bound, beside two that do not."""
    folders = [make_run("calm"), make_run("slow", loss=2.0), make_run("mean")]
    lines = [json.loads(line) for line in (folders[2] / "metrics.jsonl").read_text().splitlines()]
    grown = [json.dumps({**line, "loss": 2.0 * 1e9 ** line["step"]}) for line in lines]
    (folders[2] / "metrics.jsonl").write_text("\n".join(grown) + "\n")
    return [load_run(folder) for folder in folders]


def test_a_run_that_diverged_does_not_flatten_the_others(make_run, tmp_path):
    records = diverged(make_run)
    axes = Figure().add_subplot()
    plot_loss(records, axes)
    assert axes.get_ylim()[1] == 20.0
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["calm", "slow", "mean (cut off; up to 2e+27)"]
    assert "mean (cut off; up to 2e+27)" in written(records, tmp_path / "r.html")
    alone = Figure().add_subplot()
    plot_loss(records[2:], alone)
    assert alone.get_ylim()[1] > 1e27


@pytest.mark.parametrize("num_lines", [1, 3, 12])
def test_a_legend_neither_squeezes_the_axes_nor_is_cut_off(num_lines):
    """The axes keep at least 80 % of the width and their height, whatever the legend says."""

    def draw(axes):
        for i in range(num_lines):
            axes.plot(
                [0, 1], [i, i], label=f"geometric median of bucket {i} (0 in 200 of 200 rounds)"
            )
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)

    svg = str(inline_svg(draw, name="p", alt="", size=(5.6, 3.0)))
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())
    box = re.search(r'id="p-patch_2">\s*<path d="([^"]+)"', svg)[1]
    xs, ys = zip(*re.findall(r"[ML] (\S+) (\S+)", box), strict=True)
    assert max(map(float, xs)) - min(map(float, xs)) > 0.8 * width
    assert max(map(float, ys)) - min(map(float, ys)) > 0.75 * 3.0 * 72
    assert svg.count("geometric median of bucket") == num_lines
    legend = re.search(r'id="p-legend_1".*', svg, re.DOTALL)[0]
    places = re.findall(r'<text [^>]*?x="([-\d.]+)"[^>]*?y="([-\d.]+)"', legend)
    assert len(places) == num_lines
    assert all(0 < float(x) < width / 2 and 0 < float(y) < height for x, y in places)


def test_losses_on_the_test_set_are_drawn_where_there_is_no_accuracy(make_run, tmp_path):
    folder = make_run("regression", accuracy=None)
    text = (folder / "metrics.jsonl").read_text().replace('"test_loss": null', '"test_loss": 0.25')
    (folder / "metrics.jsonl").write_text(text)
    page = written([load_run(folder)], tmp_path / "r.html")
    assert "Test loss over rounds. Last values: regression 0.25." in page
    assert "accuracy" not in page


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 800])
def test_the_figures_do_not_scroll_sideways(runs, make_run, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no browser")
    page = written([*runs, load_run(make_run("d", title="geometric median"))], tmp_path / "r.html")
    script = (
        "<script>document.title = [...document.querySelectorAll('.scroll')].map("
        "one => one.scrollWidth - one.clientWidth)[0]</script></body>"
    )
    (tmp_path / "s.html").write_text(page.replace("</body>", script))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--window-size={width},900", f"file://{tmp_path}/s.html"],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert re.search("<title>(.*?)</title>", done.stdout)[1] == "0"
