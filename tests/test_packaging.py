"""What a person on PyPI or in a fork meets: links, versions, workflows, the container."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HOME = PROJECT["project"]["urls"]["Homepage"]
FORMS = sorted((ROOT / ".github").rglob("*.yml"))


def links(text):
    return re.findall(r"\]\(([^)]+)\)", text)


def test_links_of_the_readme_lead_to_the_repository_on_pypi():
    readme = (ROOT / "README.md").read_text()
    relative = [one for one in links(readme) if not one.startswith("http")]
    assert relative
    assert all((ROOT / one).is_file() for one in relative)
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        readme = re.sub(rule["pattern"], rule["replacement"], readme)
    assert all(one.startswith("https://") for one in links(readme))
    assert f"]({HOME}/raw/main/docs/_static/round.svg)" in readme
    assert f"]({HOME}/blob/main/LICENSE)" in readme


def test_there_is_one_address():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["repository-code"] == HOME
    assert all(url.startswith(HOME) for url in PROJECT["project"]["urls"].values())
    assert citation["authors"] == PROJECT["project"]["authors"]


def test_every_python_that_is_claimed_is_tested():
    claimed = [
        one.rpartition(" ")[2]
        for one in PROJECT["project"]["classifiers"]
        if re.search(r"Python :: 3\.\d", one)
    ]
    tests = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["tests"]
    assert tests["strategy"]["matrix"]["python"] == claimed
    assert PROJECT["project"]["requires-python"] == f">={claimed[0]}"


def test_workflows_only_call_targets_that_there_are():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = [
        step["run"].split()[1]
        for path in sorted((ROOT / ".github/workflows").glob("*.yml"))
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
        if step.get("run", "").startswith("make ")
    ]
    assert {"test", "test-slow", "lint", "types", "docs", "package", "notebook"} <= set(called)
    assert set(called) <= targets


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_and_workflows_are_yaml(path):
    read = yaml.safe_load(path.read_text())
    if path.parent.name == "ISSUE_TEMPLATE" and path.stem != "config":
        assert {"name", "description", "body"} <= set(read)
        ids = [one["id"] for one in read["body"]]
        assert len(set(ids)) == len(ids)
        assert all(one["attributes"]["label"] for one in read["body"])


def test_the_container_copies_what_the_build_needs():
    ignored = (ROOT / ".dockerignore").read_text().split()
    text = (ROOT / "Dockerfile").read_text()
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.*)", text, re.M)
        for word in line.split()[:-1]
    ]
    assert {"pyproject.toml", "README.md", "src"} <= set(copied)
    for word in copied:
        assert (ROOT / word).exists()
        assert f"!{word}" in ignored
    assert re.search(r'ENTRYPOINT \["phalanx"\]\nCMD \["demo"\]\n$', text)
