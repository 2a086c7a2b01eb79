"""Every Python example of the README and the site runs, and every training command parses."""

import pytest

import pages
from phalanx.cli import main


@pytest.mark.parametrize(
    "page",
    [page for page in pages.PAGES if pages.examples(page)],
    ids=lambda page: page.relative_to(pages.ROOT).as_posix(),
)
def test_examples_run(page, tmp_path, monkeypatch):
    """The blocks of a page share one namespace, as a reader who types them in would."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in pages.examples(page):
        try:
            exec(compile(block, str(page), "exec"), namespace)
        except ImportError as error:
            if "pip install 'phalanx[" not in str(error):
                raise
            pytest.skip(str(error))


@pytest.mark.parametrize(
    "command",
    [
        command
        for page in pages.PAGES
        for command in pages.commands(page)
        # the others need a run, a file or a module that only the reader has
        if command[0] in ("train", "compare", "federate")
        and "mylab" not in str(command)
        and not {"--resume", "--config"} & set(command)
    ],
    ids=" ".join,
)
def test_training_commands_parse(command, capsys):
    """jsonargparse resolves the whole configuration and prints it instead of running."""
    with pytest.raises(SystemExit) as ended:
        main([*command, "--print_config"])
    assert ended.value.code in {0, None}, capsys.readouterr().err
    assert "seed" in capsys.readouterr().out
