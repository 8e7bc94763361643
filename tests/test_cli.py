"""The command line: exit status, one line on stderr, nothing written, quick help; the layers."""

import ast
import gzip
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import w2s_jax
from w2s_jax import testing
from w2s_jax.cli.main import main
from w2s_jax.config import recipes
from w2s_jax.config.extensions import EXTENSIONS
from w2s_jax.core import errors

REPO = Path(__file__).parent.parent
PACKAGE = Path(w2s_jax.__file__).parent


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return testing.write_tiny_task(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(data_dir, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from w2s_jax.testing import tiny_config\n"
        f"def get_config():\n    return tiny_config({str(data_dir)!r})\n"
    )
    return path


def refused(capsys, tmp_path, recipe, *overrides):
    """Runs a bad command; its one line."""
    workdir = tmp_path / "run"
    status = main(["run", f"--config={recipe}", f"--workdir={workdir}", *overrides])
    captured = capsys.readouterr()
    assert status == 2, captured
    assert captured.err.startswith("w2s: ") and captured.err.count("\n") == 1, captured.err
    assert not workdir.exists()
    return captured.err


@pytest.mark.parametrize(
    "override,parts",
    [
        ("--config.train.learning_rat=1", ["'train.learning_rat'", "'train.learning_rate'"]),
        ("--config.sead=1", ["'sead'", "'seed'"]),
        ("--config.loss.confidnce.alpha_max=1", ["'loss.confidnce.alpha_max'", "confidence"]),
        ("--config.loss.confidence.alpha=1", ["'loss.confidence.alpha'", "alpha_max"]),
        ("--config.seed=one", ["config.seed", "one"]),
        ("--config.seed=1.5", ["config.seed", "1.5"]),
        ("--config.task.name=tinny", ["task.name", "'tinny'", "allowed"]),
        ("--config.task.source=hubb", ["task.source", "'hubb'"]),
        ("--config.strong.model=gpt-d33", ["strong.model", "gpt-d33", "'gpt-d32'"]),
        ("--config.losses=xent,confidense", ["losses", "confidense", "'confidence'"]),
        ("--config.train.microbatch_size=5", ["microbatch_size", "5", "batch_size=16", "4"]),
        ("--config.task.train_docs=20", ["weak.train.batch_size", "16", "10 documents of slice1"]),
        ("--config.task.train_docs=5000", ["task.train_docs", "5000", "160"]),
        ("--config.task.validation_docs=0", ["task.validation_docs", "early_stopping"]),
        ("--config.pretrain.source=nowhere", ["pretrain.source", "nowhere"]),
        ("--config.pretrain.source=task", ["pretrain.source", "'task'", "no pretraining"]),
        ("--confg.seed=1", ["--confg.seed=1", "--config.FIELD=VALUE"]),
        ("--config.loss.confidence.alpha_max=x", ["alpha_max", "x"]),
        ("--config.mesh.data=99", ["mesh.data", "99", "8 devices"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, tmp_path, recipe, override, parts):
    text = refused(capsys, tmp_path, recipe, override)
    for part in parts:
        assert part in text, text


def test_a_missing_or_broken_recipe_is_named(capsys, tmp_path):
    text = refused(capsys, tmp_path, tmp_path / "none.py")
    assert "none.py" in text and "No such file" in text
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return 1 / 0\n")
    assert "ZeroDivisionError" in refused(capsys, tmp_path, broken)
    broken.write_text(
        "from w2s_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.train.learning_rat = 3.0\n"
    )
    text = refused(capsys, tmp_path, broken)
    assert "unknown field 'learning_rat' (did you mean 'learning_rate'?)" in text
    broken.write_text("import nothing_of_the_kind\n")
    assert "nothing_of_the_kind" in refused(capsys, tmp_path, broken)


def rewrite(data_dir, tmp_path, change):
    """A copy of the tiny task whose training rows went through `change(number, row)`."""
    copy = testing.write_tiny_task(tmp_path / "data")
    path = copy / "tiny" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [new for n, row in enumerate(rows, 1) if (new := change(n, row)) is not None]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"--config.task.data_dir={copy}"


@pytest.mark.parametrize(
    "change,parts",
    [
        (lambda n, r: {"text": r["text"]} if n == 7 else r, ["line 7", "'label'"]),
        (lambda n, r: r | {"label": 0.5} if n == 5 else r, ["line 5", "'label': 0.5", "integer"]),
        (lambda n, r: r | {"text": "  "} if n == 3 else r, ["line 3", "'text'", "empty"]),
        (lambda n, r: r | {"label": 1}, ["all 160 documents", "label 1"]),
        (lambda n, r: None, ["train.jsonl", "no record"]),
    ],
    ids=["no label", "label 0.5", "empty text", "one class", "empty file"],
)
def test_bad_rows_name_file_line_and_field(capsys, tmp_path, recipe, data_dir, change, parts):
    text = refused(capsys, tmp_path, recipe, rewrite(data_dir, tmp_path, change))
    for part in (*parts, "train.jsonl"):
        assert part in text, text


def test_overlong_documents_are_counted_and_treated_as_asked(capsys, tmp_path, recipe):
    run = ["run", f"--config={recipe}", f"--workdir={tmp_path / 'run'}", "--dry_run"]
    short = "--config.task.max_length=30"
    assert main([*run, short]) == 0
    out = capsys.readouterr().out
    assert "exceed task.max_length=30 tokens; policy: truncate" in " ".join(out.split())
    text = refused(capsys, tmp_path, recipe, short, "--config.task.overlong=error")
    assert "task.max_length" in text and "30" in text


def test_gzipped_files_do_as_well(capsys, tmp_path, recipe):
    copy = testing.write_tiny_task(tmp_path / "data")
    path = copy / "tiny" / "train.jsonl"
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(path.read_bytes())
    path.unlink()
    run = ["run", f"--config={recipe}", f"--workdir={tmp_path / 'run'}", "--dry_run"]
    assert main([*run, f"--config.task.data_dir={copy}"]) == 0


RECIPES = [str(p.relative_to(REPO / "configs")) for p in (REPO / "configs").rglob("*.py")]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_has_a_docstring_with_its_command_and_is_valid(name):
    from w2s_jax.config.validation import validate

    path = REPO / "configs" / name
    validate(recipes.load_config(str(path), []))
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"w2s run --config=configs/{name}" in doc


def test_help_is_quick_and_imports_no_jax():
    code = (
        "import sys, contextlib\n"
        "from w2s_jax.cli import main as cli\n"
        "with contextlib.suppress(SystemExit):\n"
        "    cli.main(['run', '--help'])\n"
        "heavy = {'jax', 'flax', 'matplotlib', 'sklearn', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert time.monotonic() - started < 2
    options = ("--config", "--workdir", "--store", "--dry_run", "--debug_nans", "--profile")
    for option in (*options, "--dump_hlo"):
        assert option in done.stdout


def test_none_brings_a_default_back():
    recipe = str(Path(__file__).parents[1] / "configs" / "text_bytes.py")
    unset = ["--config.train.learning_rate=None", "--config.train.clip_norm=None"]
    config = recipes.load_config(recipe, [*unset, "--config.seed=3"])
    assert config.train.learning_rate is config.train.clip_norm is None and config.seed == 3
    with pytest.raises(errors.InputError):
        recipes.load_config(recipe, ["--config.train.batch_size=None"])


@pytest.mark.parametrize(
    "arguments,parts",
    [
        (["runn"], ["unknown value 'runn' (did you mean 'run'?)"]),
        (["run", "--conf=R", "--workdir=D/w"], ["'--conf' (did you mean '--config'?)"]),
        (["run", "--config=R", "--workdir=D/w", "--dry-run"], ["(did you mean '--dry_run'?)"]),
        (["run", "--config=R", "--workdir=D/w", "--seed=3"], ["'--config.seed=VALUE'"]),
        (["run", "--config=R", "--workdir=D/w", "--config.seed", "3"], ["use --config.seed=3"]),
        (["run", "--config=R", "--workdir="], ["argument workdir: is empty"]),
        (["run", "--config=R", "--workdir=R"], ["--workdir: R is a file"]),
        (["run", "--config=R", "--workdir=R/w"], ["--workdir: R/w: R is a file"]),
        (["run", "--config=R", "--workdir=/proc/w"], ["--workdir: /proc/w: cannot write to /proc"]),
        (["run", "--config=R", "--workdir=D/w", "--store=R"], ["--store: R: R is a file"]),
        (
            ["run", "--config=R", "--workdir=D/w", "--config.checkpoint.dir=/proc/x"],
            ["checkpoint.dir: /proc/x: cannot write"],
        ),
        (["run", "--config=R", "--workdir=D/w", "--config.checkpoint.dir="], ["checkpoint.dir"]),
        (["report", "D/nosuch"], ["D/nosuch: no such folder"]),
        (["report", "R"], ["R: is a file"]),
        (["report", "D"], ["D: is neither a run nor a sweep; give its runs: w2s report D/*"]),
        (["report", "D/begun"], ["D/begun: is not finished", "w2s run"]),
        (["report", "D/done", "--out=R"], ["--out: R: R is a file"]),
        (["gc", "D"], ["D: is neither a run nor a sweep; it has folders of runs", "begun, done"]),
        (["gc", "D/nosuch"], ["no such folder"]),
        (["sweep", "status"], ["use status DIR, with one folder"]),
        (["sweep", "stauts", "D"], ["(did you mean 'status'?)"]),
        (["sweep", "status", "D"], ["D: has no sweep.json; give the folder of a sweep"]),
        (["sweep", "--config=R", "--workdir=D/w", "--watch"], ["--watch needs status"]),
        (["sweep", "--config=R", "--workdir=R"], ["--workdir: R is a file"]),
        (["data", "check", "sst2", "--n=3"], ["data check: unknown argument '--n=3'"]),
        (["data", "show", "sst2", "--overlong=cut"], ["--overlong: unknown value 'cut'"]),
        (["data", "show", "sst2", "--max_length=0"], ["--max_length: 0"]),
        (["data", "prepare", "sst2", "--to=R"], ["--to: R: R is a file"]),
        (["bench", "train", "--json=D"], ["--json: D: is a folder"]),
        (["bench", "train", "--config.seed=1"], ["needs a recipe: --config=FILE"]),
        (["compile", "--config=R", "--topology=v9:4"], ["'v9:4'", "slices of v4, v5e, v5p, v6e"]),
        (["compile", "--config=R", "--topology=v5e:3"], ["'v5e:3'", "v5e-256"]),
    ],
)
def test_a_clumsy_command_line_is_told_apart_from_others(
    capsys, monkeypatch, tmp_path, recipe, arguments, parts
):
    for name in ("begun/config.json", "done/config.json", "done/result.json"):
        (tmp_path / "D" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "D" / name).write_text('{"config": {}, "data": {}}')
    recipe.rename(tmp_path / "R")
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status == 2 and captured.err.count("\n") == 1, captured.err
    for part in parts:
        assert part in captured.err
    assert not (tmp_path / "D" / "w").exists() and not list(tmp_path.rglob(".w2s-*"))


@pytest.mark.parametrize(
    "override,parts",
    [
        ("weak.train.learning_rate=1000", ["weak.train.learning_rate: 1000.0", "at most 10"]),
        ("train.learning_rate=nan", ["a finite number above 0 and at most 10"]),
        ("train.weight_decay=200", ["weak.train.weight_decay: 200.0 times learning_rate=0.01"]),
        ("lora.rank=100000", ["weak.lora.rank: 100000; allowed: at most 8"]),
        ("lora.alpha=1e300", ["lora.alpha"]),
        ("checkpoint.every_minutes=inf", ["checkpoint.every_minutes", "from 0 to 1000000"]),
        ("train.dropout=0.9999999999", ["train.dropout", "is 1.0 in float32", "below 1"]),
        ("train.learning_rate=1e-300", ["train.learning_rate", "is 0.0 in float32", "above 0"]),
        ("train.steps=1000000000000", ["train.steps", "10000000"]),
        ("train.epochs=1e300", ["weak.train.epochs: 1e+300", "10,000,000"]),
        ("task.max_length=10000000000", ["task.max_length", "1048576"]),
        ("name=", ["name: '' is empty"]),
        ("weak.model=" + "a" * 300, ["weak.model", "300 characters"]),
        ("method.bootstrapping.models=(1,)", ["method.bootstrapping.models: 1 is of type int"]),
        ("weak.labels=/nowhere.csv", ["weak.labels: /nowhere.csv: cannot be read"]),
    ],
)
def test_values_that_would_fail_late_are_refused_early(capsys, tmp_path, recipe, override, parts):
    more = []
    if override.startswith("train.weight"):
        more = ["--config.train.optimizer=adamw"]
    elif override.startswith("lora"):
        more = ["--config.weak.train.adapt=lora"]
    elif override.startswith("train.epochs"):
        more = ["--config.train.steps=None"]
    text = refused(capsys, tmp_path, recipe, f"--config.{override}", *more)
    for part in parts:
        assert part in text, text


def test_the_traceback_is_shown_when_asked_for(capsys, tmp_path, monkeypatch):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    monkeypatch.setenv("W2S_TRACEBACK", "1")
    assert main(["run", f"--config={broken}", f"--workdir={tmp_path / 'w'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1].startswith("w2s: --config: ")


def test_usage_errors_are_one_line_and_status_2(capsys):
    for arguments in ([], ["runn"], ["run", "--config=x"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


#: Packages from the ground up; a module imports only from its own and those before it. The only way
#: up is the list of modules in config/extensions.py, which config/tables.py imports by name.
PACKAGES = [
    "core",
    "config",
    "metrics",
    "store",
    "profiling",
    "data",
    "sharding",
    "losses",
    "models",
    "testing",
    "training",
    "planning",
    "phases",
    "methods",
    "report",
    "execution",
    "perf",
    "sweep",
    "cli",
]
#: Root modules that only repeat names of packages: what recipes import.
PUBLIC_NAMES = ("__init__", "recipes", "resolve", "validation")


def package_of(module):
    """The entry of PACKAGES that a module of w2s_jax belongs to."""
    package = module.split(".")[0]
    assert package in PACKAGES, f"w2s_jax.{module} has no place in PACKAGES"
    return package


def imports(path):
    """Modules of the package that a file imports anywhere, without the package's name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("w2s_jax."):
                    yield alias.name.removeprefix("w2s_jax.")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("w2s_jax"):
            base = node.module.removeprefix("w2s_jax").removeprefix(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".removeprefix(".")
                known = (PACKAGE / (full.replace(".", "/") + ".py")).exists()
                known = known or (PACKAGE / full.replace(".", "/")).is_dir()
                if known or base:
                    yield full if known else base


def test_only_tables_import_modules_of_higher_layers_by_name():
    by_name = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "import_module(" in path.read_text()
    }
    # core/lazy.py imports JAX, the __init__.py their own modules.
    own = {"data/tasks/__init__.py", "models/__init__.py", "phases/__init__.py"}
    assert by_name == {"config/tables.py", "core/lazy.py", *own}
    for module in itertools.chain(*EXTENSIONS.values()):
        assert (PACKAGE.parent / (module.replace(".", "/") + ".py")).exists(), module


def test_imports_point_down_the_layers_only():
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        if module in PUBLIC_NAMES:
            continue
        for imported in imports(path):
            lower, upper = package_of(imported), package_of(module)
            assert PACKAGES.index(lower) <= PACKAGES.index(upper), f"{module} imports {imported}"
            checked += 1
    assert checked > 500
