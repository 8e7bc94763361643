"""Errors in recipes and overrides: one line with the file, the line of the recipe and the field."""

import pytest
from refusals import error

from w2s_jax.config import recipes
from w2s_jax.sweep.points import load_points

START = "from w2s_jax.config import add_loss, default_config\nc = default_config()\n"


def write(folder, text, name="recipe.py"):
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "body,parts",
    [
        ("c.losses = 3", [":4: losses: 3 is of type int", "tuple"]),
        ("c.train.steps = '40'", [":4: train.steps: '40' is of type str", "int or None"]),
        (
            "for s in (c.pretrain,):\n        s.steps = 0.5",
            [":5: pretrain.steps: 0.5 is of type float"],
        ),
        ("c.train = 3", [":4: train: 3, but it is a section", "epochs"]),
        ("c.train.stepz = 3", [":4: unknown field 'stepz' (did you mean 'steps'?)", "train"]),
        (
            "c.seed = c.learning_rate",
            [":4: unknown field", "(did you mean 'train.learning_rate'?)"],
        ),
        ("c.update(sede=3)", [":4: unknown field 'sede' (did you mean 'seed'?)"]),
        (
            "add_loss(c, 'x', 'xnet')",
            [":4: loss.x.kind: unknown value 'xnet' (did you mean 'xent'"],
        ),
        ("c = len(3)", [":4: TypeError: object of type 'int' has no len()", "W2S_TRACEBACK=1"]),
        ("raise ValueError('a' * 999 + '\\nb')", [":4: ValueError: aaa"]),
        ("import helper\n    helper.fails()", [":5: ZeroDivisionError", "helper.py:2"]),
        ("import unparsable", [":4: SyntaxError: ", "unparsable.py:1"]),
        ("import no_such_module", [":4: ModuleNotFoundError: No module named 'no_such_module'"]),
        ("raise SystemExit(3)", [":4: calls sys.exit(3)"]),
        ("c = None", [":3: get_config returns None", "default_config()"]),
        ("c = {'seed': 3}", [":3: get_config returns a dict"]),
    ],
)
def test_an_error_in_get_config_names_the_line_and_the_field(tmp_path, monkeypatch, body, parts):
    write(tmp_path, "def fails():\n    1 / 0\n", "helper.py")
    write(tmp_path, "def f(:\n", "unparsable.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(tmp_path, f"{START}def get_config(c=c):\n    {body}\n    return c\n")
    text = error(recipes.load_config, path, [])
    assert text.startswith(f"--config: {path}:") and len(text) < 700
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize(
    "text,parts",
    [
        ("def get_config(:\n", [":1: SyntaxError"]),
        ("x = 1\nimport sys\nsys.exit()\n", [":3: calls sys.exit(None)"]),
        (START + "c.losses = 3\n", [":3: losses: 3 is of type int"]),
        (START + "def get_confg():\n    return c\n", ["get_config", "'get_confg'"]),
        ("", ["defines no function get_config"]),
        ("get_config = 3\n", ["defines no function get_config; it must"]),
        (
            START + "def get_config(seed):\n    return c\n",
            [":3: get_config needs", "'seed'", ":ARG"],
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_told_what_is_missing(tmp_path, text, parts):
    path = write(tmp_path, text)
    found = error(recipes.load_config, path, [])
    assert found.startswith(f"--config: {path}")
    for part in parts:
        assert part in found, found


def test_an_argument_that_is_not_taken_and_a_file_that_is_not_there_are_named(tmp_path):
    path = write(tmp_path, START + "def get_config():\n    return c\n")
    assert "get_config takes no argument, but got '3'" in error(
        recipes.load_config, f"{path}:3", []
    )
    assert "(did you mean 'recipe.py'?)" in error(recipes.load_config, path[:-3], [])
    assert "did you mean" not in error(recipes.load_config, str(tmp_path / "other.py"), [])
    assert "Is a directory" in error(recipes.load_config, str(tmp_path), [])


def test_a_sweep_names_the_line_of_its_own_function_too(tmp_path):
    start = START + "def get_config():\n    return c\ndef sweep():\n"
    path = write(tmp_path, start + "    return [{'seed': 1 / 0}]\n")
    assert f"{path}:6: ZeroDivisionError" in error(load_points, path, [])


@pytest.mark.parametrize(
    "override,parts",
    [
        ("losses.foo=1", ["unknown field 'losses.foo'", "did you mean 'losses'"]),
        ("protocol.balance=maybe", ["--config.protocol.balance: 'maybe' is not True or False"]),
        ("train=3", ["'train'", "is a section", "epochs"]),
        ("train.learning_rate=x", ["--config.train.learning_rate: 'x' is not a number"]),
        ("seed=1e3", ["--config.seed: '1e3' is not an integer"]),
        ("seed", ["--config.seed: has no value; use --config.seed=VALUE"]),
        ("loss.mine.kind2=1", ["unknown field 'loss.mine.kind2'"]),
    ],
)
def test_an_override_that_cannot_be_read_names_the_field(tmp_path, override, parts):
    path = write(tmp_path, START + "def get_config():\n    return c\n")
    text = error(recipes.load_config, path, [f"--config.{override}"])
    for part in parts:
        assert part in text, text


def test_overrides_are_read_as_the_fields_type_and_the_last_one_counts(tmp_path):
    path = write(
        tmp_path, f"{START}def get_config():\n    add_loss(c, 'a(b=0.5)', 'kl')\n    return c"
    )
    overrides = {
        "seed": ("0x10", 16),
        "train.clip_norm": ("1", 1.0),
        "protocol.balance": ("f", False),
        "losses": ("xent,kl", ("xent,kl",)),
        "lora.targets": ("attention.*,mlp.up", ("attention.*,mlp.up",)),
        "method.losses": ("('kl',)", ("kl",)),
        "loss.a(b=0.5).kind": ("xent", "xent"),
    }
    given = [
        "--config.seed=3",
        *(f"--config.{field}={text}" for field, (text, _) in overrides.items()),
    ]
    config = recipes.load_config(path, [*given, "--config.log.wandb"])
    assert config.log.wandb is True
    for field, (_, value) in overrides.items():
        *parents, leaf = ["loss", "a(b=0.5)", "kind"] if "(" in field else field.split(".")
        section = config
        for key in parents:
            section = section[key]
        assert section[leaf] == value and type(section[leaf]) is type(value), field
