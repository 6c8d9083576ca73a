"""The command ``distilwhisper``: every stage of the method, and what goes around it, from a shell.

Options are those of the Python API. They can also stand in a YAML or JSON file (``--config_file``); flags win over the
file. A command that fails says why in one sentence and exits with 1 (2: wrong options, 130: stopped by Ctrl-C);
``--debug`` shows the traceback.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from distilwhisper.help_pages import HelpFormatter, arrange

if TYPE_CHECKING:
    from transformers import HfArgumentParser

COMMANDS = {
    "plan": "say what a distillation will cost: hours, memory, disk",
    "create-student": "make a student out of a teacher's layers",
    "segment": "cut long recordings at pauses",
    "pseudo-label": "transcribe a data set with the teacher",
    "filter": "drop labels that disagree with the reference transcripts",
    "train": "distil: train the student on the labels and the teacher's distributions",
    "evaluate": "measure word error rates and speed, beside the teacher's",
    "transcribe": "turn recordings of any length into text",
    "export": "write a model for another runtime, and check it there",
    "report": "make a page with plots of what evaluate measured",
    "demo": "do all of this once on synthesised speech, in minutes",
    "env": "show what this machine has, and what to install",
}
"""Command to summary; the module of a command has its name, with underscores."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_IN_WORDS = ("No space left on device", "PytorchStreamWriter failed writing file")

HELP_ALL = {"--help_all", "--help-all"}


class UsageError(Exception):
    """Options that cannot be meant as they are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: The words after ``distilwhisper``; default those of this process.

    Returns:
        The exit code: 0, 1 if the command failed, 130 if it was interrupted.

    Raises:
        SystemExit: With code 2 for wrong options, with 0 after ``--help`` and ``--version``.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    front = _front_door()
    name = front.parse_args(arguments[:1] or ["--help"]).command
    flags = _without_bare_debug(arguments[1:])
    debug = flags != arguments[1:]
    try:
        printed = run(name, flags)
    except UsageError as error:
        front.exit(2, f"distilwhisper {name}: {error}\n")
    except KeyboardInterrupt:
        sys.stderr.write(f"\ndistilwhisper {name}: interrupted\n")
        return 130
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(f"distilwhisper {name}: {explain(error)} (--debug shows where)\n")
        return 1
    sys.stdout.write(f"{printed}\n" if printed else "")
    return 0


def run(name: str, arguments: Sequence[str]) -> str | None:
    """Run one command and return what it has to say.

    Args:
        name: One of ``COMMANDS``.
        arguments: Its flags.

    Raises:
        UsageError: For options that cannot be meant as they are, in flags or in the file.
        Exception: Whatever made the command fail.
    """
    module = import_module(f"distilwhisper.commands.{name.replace('-', '_')}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("distilwhisper").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").propagate = False  # it writes its warnings itself
    parser = build_parser(name, module, arguments)
    *options, _, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        known = [flag for action in parser._actions for flag in action.option_strings]
        raise UsageError(f"there is no option {unknown[0]}{_nearest(unknown[0], known)}")
    printed: str | None = module.run(*options)
    return printed


def build_parser(name: str, module: ModuleType, arguments: Sequence[str]) -> HfArgumentParser:
    """Return the parser of a command, with the defaults that a file or the command itself sets.

    Args:
        name: The command.
        module: Its module.
        arguments: Its flags, of which some choose defaults of others.
    """
    from transformers import HfArgumentParser  # not at the top: `distilwhisper --help` should be there at once

    parser = HfArgumentParser(
        module.OPTIONS, prog=f"distilwhisper {name}", description=module.__doc__, formatter_class=HelpFormatter
    )
    parser.add_argument("--config_file", "--config-file", help="YAML or JSON file with options; flags win over it.")
    if "--debug" not in parser._option_string_actions:
        parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    own = {name for kind in module.OPTIONS for name in vars(kind)["__annotations__"]}
    if any(field.name not in own for kind in module.OPTIONS for field in fields(kind)):
        parser.add_argument("--help_all", "--help-all", action="help", help="Explain every option of Transformers too.")
        arrange(parser, {*own, "help", "help_all", "config_file"}, everything=bool(HELP_ALL & set(arguments)))
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config_file", "--config-file")
    path = early.parse_known_args(arguments)[0].config_file
    values = read_options(Path(path)) if path else {}
    known = {action.dest for action in parser._actions} - {"help", "help_all", "config_file", "debug"}
    if unknown := sorted(set(values) - known):
        raise UsageError(f"{path} has the unknown option {unknown[0]!r}{_nearest(unknown[0], known)}")
    if hasattr(module, "defaults"):
        values = {**module.defaults(arguments, values), **values}
    given = {word.partition("=")[0] for word in arguments}
    for action in parser._actions:
        if action.dest in values and not given & set(action.option_strings):
            parser.set_defaults(**{action.dest: values[action.dest]})
            action.required = False
    return parser


def read_options(path: Path) -> dict[str, Any]:
    """Return the options in a YAML or JSON file, names with underscores.

    Raises:
        UsageError: If the file is missing, is neither, or holds something else than names and values.
    """
    import yaml

    if path.suffix not in (".yaml", ".yml", ".json"):
        raise UsageError(f"the options must stand in a .yaml, .yml or .json file, not in {path}")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise UsageError(f"the file of options {path} does not exist") from None
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is broken: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise UsageError(f"{path} must hold names and values of options, not a {type(values).__name__}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def explain(error: BaseException) -> str:
    """Return the message of an error on one line, with what to do where the message itself does not say it."""
    if _is_full(error):
        return "the disk is full: free some space and run the same command again, what is done is kept"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


def _is_full(error: BaseException | None) -> bool:
    """Return whether a disk without room is behind an error; not all libraries say so by its number."""
    if error is None:
        return False
    numbered = isinstance(error, OSError) and error.errno in _FULL
    said = any(words in str(error) for words in _FULL_IN_WORDS)
    return numbered or said or _is_full(error.__cause__ or error.__context__)


def _nearest(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word.partition("=")[0], known, 1)
    return f"; did you mean {near[0]}?" if near else "; --help lists the options"


def _without_bare_debug(flags: list[str]) -> list[str]:
    """Leave out ``--debug`` where no value follows it: with one it is an option of Transformers' training."""
    following = [*flags[1:], "-"]  # behind the last flag comes no value
    return [flag for flag, after in zip(flags, following, strict=False) if flag != "--debug" or after[:1] != "-"]


def _front_door() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "distilwhisper",
        usage="distilwhisper COMMAND [OPTIONS]",
        description=f"Make a small, fast Whisper out of a big one.\n\ncommands, in the order of the method:\n{listing}",
        epilog="distilwhisper COMMAND --help explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=version("distilwhisper"))
    return parser
