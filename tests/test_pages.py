"""Every Python example of the README and the site runs."""

import pytest

import pages


@pytest.mark.parametrize(
    "page",
    [page for page in pages.PAGES if pages.examples(page)],
    ids=lambda page: page.relative_to(pages.ROOT).as_posix(),
)
def test_examples_run(page, tmp_path, monkeypatch):
    """The blocks of a page share one namespace, as a reader who types them in would."""
    if absent := [name for block in pages.examples(page) for name in pages.absent(block)]:
        pytest.skip(f"not there yet: {', '.join(absent)}")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in pages.examples(page):
        exec(compile(block, str(page), "exec"), namespace)
