"""Hashes of users' code, and phases that code of a user's own has computed."""

import dataclasses
import functools
import importlib.util
import shutil
import sys
import types

import jax
import pytest

from w2s_jax import losses, testing
from w2s_jax.config import validation
from w2s_jax.config.declarations import LOSSES, METHODS, MethodSpec
from w2s_jax.core import code, errors
from w2s_jax.core.files import read_json, write_json
from w2s_jax.execution import code_changes
from w2s_jax.models.families import FAMILIES
from w2s_jax.phases import running
from w2s_jax.planning.code import phase_code
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.store.artifacts import PhaseFolder

MODULE = '''
import functools
import math
from dataclasses import dataclass

import helper_of_code
from w2s_jax import losses
from w2s_jax.core.lazy import jax, jnp

SCALE = 2.0
GAMMA = 1.0
TABLE = {"a": [1, 2]}
UNUSED = 1


@dataclass
class Shape:
    """A class."""

    width: float = 1.0

    def area(self):
        return self.width ** 2


def scaled(factor):
    def wrap(fn):
        @functools.wraps(fn)
        def inner(*args):
            return factor * fn(*args)
        return inner
    return wrap


def square(x, power=2):
    # A comment.
    return x ** power


@jax.custom_jvp
def identity(x):
    return x


@identity.defjvp
def identity_jvp(primals, tangents):
    return primals[0], 1.0 * tangents[0]


lines = [lambda x: x + 1, lambda x: x + 2]


@scaled(3)
def loss(logits_BC, targets_BC, *, gamma=GAMMA):
    """A docstring."""
    def inner(x):
        """Another."""
        return square(x) + TABLE["a"][0]
    shape = Shape()
    return inner(logits_BC) * SCALE + shape.area() + helper_of_code.extra() + lines[0](
        identity(gamma)) + math.pi


def unused():
    return 1
'''
HELPER = "def extra():\n    return other()\n\n\ndef other():\n    return 0\n"

#: What is edited, by what, and whether the code is another then.
EDITS = [
    ("# A comment.", "# Other.", False),
    ('"""A docstring."""', '"""Other."""', False),
    ('        """Another."""\n', "", False),
    ('    """A class."""\n', "", False),
    ("return x ** power", "return (x\n        ** power)", False),
    ("UNUSED = 1", "UNUSED = 2", False),
    ("def unused():\n    return 1", "def unused():\n    return 2", False),
    ("import math", "import math, os", False),
    ("x ** power", "x * power", True),
    ("power=2", "power=3", True),
    ("GAMMA = 1.0", "GAMMA = 1.5", True),
    ("SCALE = 2.0", "SCALE = 3.0", True),
    ("[1, 2]", "[2, 2]", True),
    ("@scaled(3)", "@scaled(4)", True),
    ("@scaled(3)", "@scaled(1 + 2)", False),
    ("factor * fn", "factor + fn", True),
    ("width ** 2", "width ** 3", True),
    ("width: float = 1.0", "width: float = 2.0", True),
    ("1.0 * tangents[0]", "2.0 * tangents[0]", True),
    ("lambda x: x + 1", "lambda x: x - 1", True),
    ("math.pi", "math.e", True),
    ("return 0", "return 0  # of the helper", False),
    ("return 0", "return 1", True),
]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that returns the loss of a module, after an edit of it or its helper."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(before="", after=""):
        assert before in MODULE + HELPER
        (tmp_path / "helper_of_code.py").write_text(HELPER.replace(before, after))
        (tmp_path / "of_code.py").write_text(MODULE.replace(before, after))
        sys.modules.pop("helper_of_code", None)
        # As recipes are loaded, which are in no table of modules.
        spec = importlib.util.spec_from_file_location("of_code", tmp_path / "of_code.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.loss

    yield write
    sys.modules.pop("helper_of_code", None)


@pytest.mark.parametrize("before,after,other", EDITS)
def test_a_hash_follows_what_code_does(written, before, after, other):
    first = code.code_sha256([written()])
    assert code.code_sha256([written()]) == first
    assert (code.code_sha256([written(before, after)]) != first) == other


def test_a_hash_is_that_of_the_code_that_runs(written, tmp_path):
    """A file that is edited during a run does not change the record of the run."""
    loss = written()
    first = code.code_sha256([loss])
    (tmp_path / "of_code.py").write_text(MODULE.replace("SCALE = 2.0", "\n\nSCALE = 3.0"))
    assert code.code_sha256([loss]) == first


def test_without_source_the_bytecode_and_its_version_count(monkeypatch):
    def defined(text):
        namespace = {}
        exec(text, namespace)
        return code.code_sha256([namespace["f"]])

    text = "K = 2\ndef f(x):\n    g = lambda y: y + K\n    return g(x)\n"
    first = defined(text)
    assert defined(text) == first == defined(text.replace("g(x)", "g( x )"))
    others = {defined(text.replace(*edit)) for edit in (("y + K", "y - K"), ("= 2", "= 3"))}
    assert len(others | {first}) == 3
    version = types.SimpleNamespace(cache_tag="cpython-399")
    monkeypatch.setattr(sys, "implementation", version)
    assert defined(text) != first


def test_partials_methods_arrays_and_jitted_functions_are_followed():
    def of(value):
        return code.code_sha256([lambda: value])

    def plus(x, y):
        return x + y

    values = [
        plus,
        functools.partial(plus, 1),
        functools.partial(plus, 2),
        jax.jit(plus),
        jax.numpy.arange(3),
        jax.numpy.arange(4),
        {1, 2},
        {1: 2},
        [1].append,
        None,
    ]
    hashes = [of(value) for value in values]
    assert len(set(hashes)) == len(values) and hashes == [of(value) for value in values]
    itself = []
    itself.append(itself)
    assert of(itself) == of(itself)


def test_built_in_extensions_have_no_hash_and_users_have():
    assert not any(code.users_code((s.fn, s.init_state, s.update)) for s in LOSSES.values())
    assert not any(code.users_code((f.to_config, f.views)) for f in FAMILIES.values())
    assert code.users_code([None, test_built_in_extensions_have_no_hash_and_users_have])


@pytest.fixture
def register():
    """A function that registers a loss of the user's own, with a number in its code."""

    def register(number):
        LOSSES._entries.pop("of_code", None)
        namespace = {"number": number}
        exec("def f(a, b, c, *, weights_B=None):\n    return number * a.sum()", namespace)
        return losses.register("of_code", coupled=False)(namespace["f"])

    yield register
    LOSSES._entries.pop("of_code", None)


@pytest.fixture
def phase(register, tmp_path):
    """A phase with the loss, and its empty folder."""
    register(1)
    settings = validation.loss_settings("of_code", {"kind": "of_code"})
    model = types.SimpleNamespace(family="", name="")
    phase = types.SimpleNamespace(
        task="",
        loss=settings,
        model=model,
        method=None,
        kind="student",
        name="student-0",
        parents={},
    )
    return phase, PhaseFolder(tmp_path / "student-0")


def test_what_other_code_has_computed_is_refused_or_noted(phase, register):
    phase, folder = phase
    now = phase_code(phase)
    assert list(now) == ["of_code"] and len(now["of_code"]) == 64
    assert code_changes.check([(phase, folder)], accept=False) == []
    states = [
        ("computed", {folder.result: {"code": now}}),
        ("begun", {folder.config: {"code": now}, folder.path / "checkpoints" / "steps" / "1": {}}),
        ("begun", {folder.config: {"code": now, "execution": {"population": {}}}}),
    ]
    for state, records in states:
        for path, record in records.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, record)
        register(1)
        assert code_changes.check([(phase, folder)], accept=False) == []
        register(2)
        with pytest.raises(errors.InputError) as error:
            code_changes.check([(phase, folder), (phase, folder)], accept=False)
        line = str(error.value)
        assert f"student-0: {state} by other code of 'of_code'" in line and "\n" not in line
        assert "now, and so was student-0;" in line and "--accept_changed_code" in line
        (note,) = code_changes.check([(phase, folder)], accept=True)
        assert note.endswith("used as it is")
        shutil.rmtree(folder.path)


def own(*_):
    """The code of an extension of the user's own."""


def test_the_code_of_each_extension_that_a_phase_runs_is_recorded(monkeypatch):
    family = dataclasses.replace(FAMILIES["llama"], name="own_family", views=own)
    kind = dataclasses.replace(PHASE_KINDS["labels"], name="ownkind", run=own)
    method = MethodSpec("own_method", own, label_makers={"own_labels": own})
    monkeypatch.setitem(FAMILIES, family.name, family)
    for table, spec in ((PHASE_KINDS, kind), (METHODS, method)):
        monkeypatch.setitem(table._entries, spec.name, spec)

    def names(family="", method=None, kind="labels"):
        model = types.SimpleNamespace(family=family, name="")
        phase = types.SimpleNamespace(loss=None, model=model, method=method, kind=kind, task="")
        return list(phase_code(phase))

    assert names() == [] and names(family="llama") == []
    assert names(family="own_family") == ["own_family"]
    assert names(method=("own_labels", ())) == ["own_labels"]
    assert names("own_family", ("own_labels", ()), "ownkind") == [
        "own_family",
        "own_labels",
        "ownkind",
    ]


@pytest.mark.parametrize("record", [{}, {"code": {"another": "0"}}, {"code": None}, []])
def test_phases_without_the_field_are_accepted(phase, record):
    phase, folder = phase
    folder.path.mkdir()
    write_json(folder.result, record)
    assert code_changes.check([(phase, folder)], accept=False) == []


def test_the_code_of_parents_counts(tmp_path, monkeypatch):
    """Labels of other code that were moved away must not leave the student that learned them."""
    monkeypatch.setitem(METHODS._entries, "own_method", MethodSpec("own_method", own))

    def use(maker):
        made = dataclasses.replace(METHODS["own_method"], label_makers={"noisy": maker})
        monkeypatch.setitem(METHODS._entries, "own_method", made)

    def phase(name, parents, method=None):
        model = types.SimpleNamespace(family="", name="")
        kind = name.partition("-")[0]
        more = {"loss": None, "model": model, "method": method, "kind": kind}
        return types.SimpleNamespace(name=name, parents=parents, task="", **more)

    labels = phase("labels-0", {"labels": "weak-0"}, ("noisy", ()))
    student = phase("student-0", {"labels": labels.name})
    phases = [(p, PhaseFolder(tmp_path / p.name)) for p in (labels, student)]
    context = types.SimpleNamespace(folder=lambda name: PhaseFolder(tmp_path / name))
    (tmp_path / "weak-0").mkdir()
    write_json(tmp_path / "weak-0" / "result.json", {"kind": "weak"})
    use(own)
    for each, folder in phases:
        folder.path.mkdir()
        write_json(folder.result, running._code(each, context))
        assert list(read_json(folder.result)["code"]) == ["noisy"]
    assert code_changes.check(phases, accept=False) == []
    use(lambda work: None)
    with pytest.raises(errors.InputError, match=r"labels-0: .* and so was student-0; "):
        code_changes.check(phases, accept=False)
    phases[0][1].path.rename(tmp_path / "away")
    with pytest.raises(errors.InputError, match="student-0: computed by other code of 'noisy'"):
        code_changes.check(phases, accept=False)


RECIPE = """
from w2s_jax import losses, testing
from w2s_jax.core.lazy import jnp

def term(log_p_BC):
    return -log_p_BC * 1.0

@losses.register("own_xent", coupled=False)
def own_xent(logits_BC, targets_BC, step_fraction, *, weights_B=None):
    terms_BC = targets_BC * term(losses.log_probabilities(logits_BC))
    return losses.weighted_mean(jnp.sum(terms_BC, axis=-1), weights_B)

def get_config():
    config = testing.tiny_config({data!r})
    config.losses = ("own_xent",)
    config.pretrain.steps = config.train.steps = 2
    return config
"""


@pytest.mark.medium
def test_a_run_and_a_sweep_with_a_loss_whose_code_changes(tmp_path, capsys, monkeypatch):
    from w2s_jax.cli.main import main

    data = testing.write_tiny_task(tmp_path / "data")
    recipe, workdir = tmp_path / "recipe.py", tmp_path / "run"

    def run(*more, factor="1.0", command="run"):
        LOSSES._entries.pop("own_xent", None)
        text = RECIPE.replace("{data!r}", repr(str(data))).replace("* 1.0", f"* {factor}")
        if command == "sweep":
            text += (
                "from w2s_jax.sweep.space import over\ndef sweep():\n    return over('seed', (0,))"
            )
        recipe.write_text(text)
        status = main([command, f"--config={recipe}", *more])
        LOSSES._entries.pop("own_xent", None)
        return status, capsys.readouterr()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert run(f"--workdir={workdir}")[0] == 0
    found = {p.name.partition("-")[0]: p for p in (workdir / "phases").iterdir()}
    recorded = read_json(found["student"] / "result.json")["code"]
    assert set(recorded) == {"own_xent"}
    assert read_json(found["student"] / "config.json")["code"] == recorded
    assert "code" not in read_json(found["weak"] / "result.json")
    status, told = run(f"--workdir={workdir}", factor="2.0")
    assert status == 2 and told.err.count("\n") == 1 and "other code of 'own_xent'" in told.err
    status, told = run(f"--workdir={workdir}", "--accept_changed_code", factor="2.0")
    assert status == 0 and "used as it is" in " ".join(told.out.split())
    more = (f"--workdir={tmp_path}/sweep", f"--store={workdir}/phases", "--dry_run")
    status, told = run(*more, factor="2.0", command="sweep")
    assert status == 2 and "other code of 'own_xent'" in told.err
    status, told = run(*more, "--accept_changed_code", factor="2.0", command="sweep")
    assert status == 0 and "used as it is" in " ".join(told.out.split())
    assert run(f"--workdir={workdir}")[0] == 0
