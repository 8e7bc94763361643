"""Commands, flags and config fields must not change, because users and scripts rely on them.

Help texts and metavars may change.
"""

import argparse

from frozen_files import check, frozen


def the_parser():
    """Return the parser of the command line; the only internal function used here."""
    from w2s_jax.cli import parser

    return parser.parser()


def name_of(kind):
    """Return the name of an argument's type; None for a plain string."""
    return None if kind is None else getattr(kind, "__name__", type(kind).__name__)


def described(action):
    """Return the properties of an argument."""
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
    """Return {command: {flag or operand: properties}} of a parser and its subparsers."""
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
    """--config.FIELD=VALUE: the default of each field, and the type if the default is None."""
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
