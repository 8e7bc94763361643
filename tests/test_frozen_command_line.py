"""The commands, their flags, and the fields of a config, as users and their scripts know them.

Sentences of help, and what stands for a value there (metavar), may change.
"""

import argparse

from frozen_files import check, frozen


def the_parser():
    """The whole command line's parser: all that is asked of the package's insides."""
    from w2s_jax.cli import parser

    return parser.parser()


def name_of(kind):
    """The name of an argument's type; None: a string as it stands."""
    return None if kind is None else getattr(kind, "__name__", type(kind).__name__)


def described(action):
    """What an argument takes."""
    found = {
        "action": type(action).__name__.strip("_"),
        "default": action.default,
        "const": action.const,
        "choices": action.choices and [str(choice) for choice in action.choices],
        "nargs": action.nargs,
        "required": action.required,
        "type": name_of(action.type),
    }
    return {name: value for name, value in found.items() if value is not None}


def commands(parser, name):
    """{command: {flag or operand: what it takes}} of a parser and those below it."""
    own = {"(abbreviations are taken)": parser.allow_abbrev}
    found = {name: own}
    operands = 0
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            own[" ".join(action.option_strings)] = "help"
        elif isinstance(action, argparse._SubParsersAction):
            own["(commands)"] = {"required": action.required, "names": sorted(action.choices)}
            for command, below in action.choices.items():
                found |= commands(below, f"{name} {command}")
        elif action.option_strings:
            own[" ".join(action.option_strings)] = described(action)
        else:
            operands += 1
            own[f"(operand {operands})"] = described(action)
    for group in parser._mutually_exclusive_groups:
        flags = sorted(action.option_strings[0] for action in group._group_actions)
        own[f"(one of {', '.join(flags)})"] = {"required": group.required}
    return found


def test_the_commands_and_their_flags_are_frozen():
    found = commands(the_parser(), "w2s")
    check("command_line", found)
    assert found.keys() == frozen("command_line").keys()


def test_the_fields_of_a_config_are_frozen():
    """--config.FIELD=VALUE: a field's default, and for None the type of what it takes."""
    from ml_collections import config_dict

    from w2s_jax.config import default_config

    found = {}

    def visit(section, prefix):
        for name in section:
            value = section[name]
            if isinstance(value, config_dict.ConfigDict):
                visit(value, f"{prefix}{name}.")
            elif value is None:
                kind = section.get_type(name)
                found[f"{prefix}{name}"] = f"None, or {kind.__name__}"
            else:
                found[f"{prefix}{name}"] = repr(value)

    visit(default_config(), "")
    check("config", {"fields": found})
