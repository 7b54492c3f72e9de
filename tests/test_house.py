"""The plan of the house, read off the code: which room may import which, and what a loss owes."""

import ast
import doctest
import inspect
import pathlib

import optax
import pytest
from catalog import CATALOG

import jloss

ROOT = pathlib.Path(jloss.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
BELOW = {  # room: the rooms it stands on
    "_core": {"_core"},
    "reduction": {"_core"},
    "fused": {"_core", "reduction", "fused"},
    "metrics": {"_core", "reduction", "metrics"},
    "losses": {"_core", "reduction", "fused", "metrics"},
    "optimizers": {"optimizers"},
    "training": set(),
    "accumulation": {"_core", "reduction", "losses"},
    "adaptive": {"_core", "reduction", "losses"},
    "analysis": {"_core", "reduction", "losses", "analysis"},
}
LOSSES = {
    name: f
    for name, f in vars(jloss).items()
    if inspect.isfunction(f)
    and "reduction" in inspect.signature(f).parameters
    and "f" not in inspect.signature(f).parameters  # a loss of the user's own
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """The modules of jloss that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jloss":
            yield node.module
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "jloss")


def lengths(path):
    """Lines of each function's body, without its docstring and the functions inside it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            inner = [n for statement in body for n in ast.walk(statement)]
            inner = [n for n in inner if isinstance(n, ast.FunctionDef)]
            span = lambda first, last: last.end_lineno - first.lineno + 1
            lines = span(body[0], body[-1]) if body else 0
            yield node.name, lines - sum(span(n, n) for n in inner)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_only_go_down(path):
    for module in imports(path):
        other = module.removeprefix("jloss.").split(".")[0]
        if room(path) == "__init__":
            continue
        assert other in BELOW[room(path)], f"{path.name} imports {module}"
        if room(path) == "losses":
            assert other != "losses", "a formula that two rooms want moves down to _core"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_stay_small(path):
    assert "util" not in path.name
    assert len(path.read_text().splitlines()) <= 500


def test_functions_stay_small():
    """Bodies of about 15 lines; a tenth may reach 25."""
    long = {(path.stem, name): n for path in FILES for name, n in lengths(path) if n > 15}
    assert all(n <= 25 for n in long.values()), long
    assert len(long) <= 0.1 * sum(1 for path in FILES for _ in lengths(path)), long


def test_the_front_door_names_each_thing_once():
    names = [
        (alias.name, alias.asname)
        for node in ast.walk(ast.parse((ROOT / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert all(name == public for name, public in names)
    assert len(set(names)) == len(names)


def test_every_loss_has_a_row_and_every_row_a_loss():
    assert {name.split("-")[0] for name in CATALOG} == set(LOSSES)


@every_loss
def test_a_loss_is_a_plain_function_between_two_doors(name):
    loss = LOSSES[name]
    assert not hasattr(loss, "__wrapped__")
    parameters = inspect.signature(loss).parameters
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
    assert parameters["where"].default is None
    assert parameters["weights"].default is None
    assert parameters["reduction"].default is jloss.each
    for door in ("weights", "reduction"):
        assert parameters[door].kind is inspect.Parameter.KEYWORD_ONLY


@every_loss
def test_a_loss_has_optax_s_arguments_in_optax_s_order(name):
    twin = getattr(optax.losses, name, None)
    if twin is None:
        pytest.skip("optax has none")
    ours, theirs = (list(inspect.signature(f).parameters.values()) for f in (LOSSES[name], twin))
    positional = [p.name for p in theirs if p.kind is not p.KEYWORD_ONLY]
    assert [p.name for p in ours][: len(positional)] == positional
    by_name = {p.name: p for p in ours}
    for p in (p for p in theirs if p.name != "log_epsilon"):  # there is no logarithm of 0 here
        assert by_name[p.name].kind == p.kind
        assert by_name[p.name].default == p.default or p.name in ("targets", "label_paddings")


@every_loss
def test_a_docstring_tells_everything(name):
    text = inspect.getdoc(LOSSES[name])
    running = " ".join(text.split())
    for part in ("$$", "Args:", "Returns:", "Raises:", "References:", "as in every loss"):
        assert part in text, part
    if hasattr(optax.losses, name):
        assert "Differs from optax:" in text
    row = next(row for key, row in CATALOG.items() if key.split("-")[0] == name)
    if row.bad:
        assert "gives NaN" in running
    assert doctest.DocTestParser().get_examples(text)


@pytest.mark.parametrize("name", [n for n in vars(jloss) if not n.startswith("_")])
def test_every_public_thing_is_documented(name):
    thing = getattr(jloss, name)
    if not inspect.ismodule(thing):
        assert inspect.getdoc(thing)


def test_the_version_is_a_version():
    assert tuple(int(part) for part in jloss.__version__.split(".")) >= (0, 1, 0)
