"""run.py needs nothing but Python, and the lock holds all that it installs, for every Python."""

import ast
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import jax
import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parent.parent
SOURCE = (ROOT / "run.py").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
# One entry per line: pins with their hashes, which follow on continued lines.
PINS = [line for line in LOCK.replace("\\\n", "").splitlines() if not line.startswith("#")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run.py in a folder of its own, which writes down its commands instead of running them."""
    for name in ("run.py", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    spec = importlib.util.spec_from_file_location("run", tmp_path / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.installs, module.jobs = [], []

    def install(command):
        module.installs.append(command)
        (tmp_path / ".venv").mkdir(exist_ok=True)

    monkeypatch.setattr(module, "check_call", install)
    monkeypatch.setattr(module, "call", lambda command: module.jobs.append(command) or 7)
    return module


def status(run, *arguments):
    with pytest.raises(SystemExit) as stop:
        run.main(sys.executable, list(arguments))
    return stop.value.code


def test_is_short_and_needs_only_the_standard_library():
    assert len(SOURCE.splitlines()) < 60
    nodes = list(ast.walk(ast.parse(SOURCE)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_parses_where_it_should_refuse():
    ast.parse(SOURCE, feature_version=(3, 7))


def test_refuses_python_3_10_in_a_sentence():
    pretend = "import runpy, sys; sys.version_info = (3, 10, 13); sys.version = '3.10.13 (main)'; "
    start = pretend + "runpy.run_path('run.py', run_name='__main__')"
    assert_refused([sys.executable, "-c", start])


def test_a_real_python_3_10_is_refused():
    python = shutil.which("python3.10")
    if python is None or subprocess.call([python, "-c", ""], stderr=subprocess.DEVNULL):
        pytest.skip("no Python 3.10 here")
    assert_refused([python, "run.py"])


def assert_refused(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"run\.py: jloss needs Python 3\.11 .* this is 3\.10\.\d+\n", done.stderr)


def test_installs_once_from_the_lock_alone(run):
    assert status(run, "test", "-k", "name") == 7
    venv, pinned, itself = run.installs
    assert venv[1:3] == ["-m", "venv"]
    assert {"--require-hashes", "--only-binary=:all:", "requirements.lock"} <= set(pinned)
    assert {"--no-index", "--no-deps", "--no-build-isolation", "-e"} <= set(itself)
    assert status(run, "bench", "--quick") == 7
    assert status(run, "--epochs", "3") == 7
    assert len(run.installs) == 3
    assert [job[1:] for job in run.jobs] == [
        ["-m", "pytest", "-n", "auto", "-k", "name"],
        ["-m", "benchmarks", "--quick"],
        ["examples/mnist.py", "--epochs", "3"],
    ]
    assert all(
        pathlib.Path(job[0]).is_relative_to(pathlib.Path.cwd() / ".venv") for job in run.jobs
    )


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_installs_again_after_a_change(run, name):
    status(run)
    pathlib.Path(name).write_text(pathlib.Path(name).read_text() + "\n# changed\n")
    status(run)
    assert len(run.installs) == 6


def test_says_what_to_type_where_python_makes_no_environments(run, monkeypatch):
    monkeypatch.setattr(run.util, "find_spec", lambda name: None)
    monkeypatch.setattr(run.os, "system", lambda command: 1)
    package = f"python3.{sys.version_info.minor}-venv"
    assert f"sudo apt-get install --yes {package}" in status(run)
    assert not run.installs


def test_here_keeps_this_jax(run):
    assert status(run, "--here", "test") == 7
    (command,) = run.installs
    assert command[0] == run.jobs[0][0] == sys.executable
    assert f"jax=={jax.__version__}" in command
    assert "--upgrade" not in command
    assert run.jobs[0][1:3] == ["-m", "pytest"]


def test_here_wants_a_jax(run, monkeypatch):
    monkeypatch.setattr(run.util, "find_spec", lambda name: None)
    assert "no jax" in status(run, "--here")


def test_lock_names_no_place():
    assert not re.search(r"/|\\(?!$)|://|--(extra-)?index|--find-links|@", LOCK, re.MULTILINE)


@pytest.mark.parametrize("pin", PINS, ids=lambda pin: pin.split()[0])
def test_every_pin_has_hashes(pin):
    requirement, *hashes = re.split(r"\s+--hash=", pin)
    assert re.fullmatch(r"==[^=<>*,]+", str(Requirement(requirement).specifier))
    assert hashes
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes)


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_has_one_fitting_pin_of_all_that_is_asked_for(python, system):
    here = {"python_version": python, "python_full_version": f"{python}.4", "sys_platform": system}
    pins = {}
    for requirement in (Requirement(pin.split("--hash")[0]) for pin in PINS):
        if requirement.marker is None or requirement.marker.evaluate(here):
            assert requirement.name not in pins
            pins[requirement.name] = str(requirement.specifier).removeprefix("==")
    for wanted in asked_for():
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        assert wanted.specifier.contains(pins[name]), f"compile requirements.lock again: {wanted}"
    assert "torch" not in pins


def asked_for():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = pyproject["project"]["optional-dependencies"]
    wanted = pyproject["build-system"]["requires"] + pyproject["project"]["dependencies"]
    for extra in ("test", "examples", "plots", "benchmarks"):
        wanted += extras[extra]
    return map(Requirement, wanted)
