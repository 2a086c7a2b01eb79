"""What holds for the package as a whole: its public names, their documentation, its version."""

import ast
import importlib
import importlib.util
import inspect
import itertools
import pkgutil
import re
import subprocess
import textwrap
import tomllib
from dataclasses import fields, is_dataclass
from functools import lru_cache

import pytest
import yaml

import phalanx
from laws import concrete
from pages import PAGES, ROOT

ROOMS = [
    importlib.import_module(found.name)
    for found in pkgutil.iter_modules(phalanx.__path__, "phalanx.")
    if found.ispkg
]
FAMILIES = ("aggregation", "attacks", "coding", "compression", "gossip", "models")

rooms = pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)


def public(room):
    """The public names of a room, and what they stand for."""
    return {name: getattr(room, name) for name in getattr(room, "__all__", ())}


def families(*names):
    """One case per family."""
    return pytest.mark.parametrize("family", names)


def algorithms(family):
    """The concrete classes of a family that implement its base class."""
    room = next((one for one in ROOMS if one.__name__ == f"phalanx.{family}"), None)
    if room is None or not importlib.util.find_spec(f"phalanx.{family}.base"):
        return []
    base = importlib.import_module(f"phalanx.{family}.base")
    found = []
    for abstract in vars(base).values():
        if inspect.isabstract(abstract) and abstract.__module__ == base.__name__:
            found += concrete(room, abstract)
    return list(dict.fromkeys(found))


@rooms
def test_all_names_what_is_there_once(room):
    """That it is sorted is the linter's business (RUF022)."""
    names = list(getattr(room, "__all__", ()))
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(room, name)] == []


@rooms
def test_the_site_documents_the_room(room):
    """The directive lists all of `__all__`, so it is enough that the room's page has it."""
    name = room.__name__.rpartition(".")[2]
    if name == "cli" or not getattr(room, "__all__", ()):  # --help documents the command line
        return
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert re.search(rf"^\.\. room:: {re.escape(room.__name__)}$", page, re.MULTILINE)
    assert re.search(rf"^{name}$", (ROOT / "docs/index.md").read_text(encoding="utf-8"), re.M)


@rooms
def test_public_names_have_their_own_docstring(room, subtests):
    for name, thing in public(room).items():
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        with subtests.test(name):
            text = inspect.getdoc(thing) or ""
            assert len(text.split()) >= 4
            if inspect.isclass(thing):
                assert "__doc__" in vars(thing)
                assert not text.startswith(f"{thing.__name__}("), "what dataclass generates"


@lru_cache
def documented_fields(cls):
    """The fields of a class body that have a string right under them."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    return {
        field.target.id
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(getattr(below.value, "value", None), str)
    }


@rooms
def test_public_fields_are_documented(room, subtests):
    """Each has a string under it, which becomes the text of `--help`."""
    for name, thing in public(room).items():
        if not is_dataclass(thing):
            continue
        with subtests.test(name):
            ours = [one for one in thing.__mro__ if one.__module__.startswith("phalanx")]
            documented = set().union(*map(documented_fields, ours))
            assert {field.name for field in fields(thing) if field.init} <= documented


@families(*FAMILIES)
def test_algorithms_can_be_built_without_arguments(family, subtests):
    for algorithm in algorithms(family):
        with subtests.test(algorithm.__name__):
            assert algorithm() == algorithm()


@families("aggregation", "attacks", "coding", "compression", "gossip")
def test_algorithms_show_an_example(family, subtests):
    for algorithm in algorithms(family):
        with subtests.test(algorithm.__name__):
            assert ">>> " in inspect.getdoc(algorithm)


@families("aggregation", "coding", "compression", "gossip")
def test_codes_and_rules_name_their_source(family, subtests):
    for algorithm in algorithms(family):
        if algorithm.__name__ == "Mean":
            continue
        with subtests.test(algorithm.__name__):
            text = inspect.getdoc(algorithm)
            assert re.search(r"^Source: .*?\b(19|20)\d\d\b", text, re.MULTILINE | re.DOTALL)


def test_the_version_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert citation["version"] == phalanx.__version__
    assert newest[1] == phalanx.__version__


def test_the_tested_versions_satisfy_the_declared_ranges():
    """`constraints.txt` pins every direct dependency, by plain versions that any index has."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = declared["dependencies"] + [
        one
        for extra in ("ray", "secure", "dev", "docs")
        for one in declared["optional-dependencies"][extra]
    ]
    assert {re.match(r"[\w.-]+", one)[0].lower() for one in wanted} <= pinned


def tracked(*patterns):
    """The files under version control that match, as text."""
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file()]


def test_no_path_of_a_machine_stands_in_the_repository():
    """The folders of whoever wrote a file mean nothing to others."""
    pattern = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/\w")
    files = [*tracked("*.py", "*.md", "*.toml", "*.txt", "*.cff", "Makefile", ".ci/run"), *PAGES]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.search(line) and "re.compile" not in line
    ]
    assert not found


def test_links_between_pages_lead_somewhere(subtests):
    for page in PAGES:
        with subtests.test(page.name):
            text = page.read_text(encoding="utf-8")
            targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
            assert [target for target in targets if not (page.parent / target).exists()] == []
