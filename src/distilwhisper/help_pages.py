"""How the command line explains itself: pages that fit a screen, and the common options before the rare ones."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Collection, Iterable
from typing import Any

COMMON = frozenset(
    "output_dir max_steps num_train_epochs per_device_train_batch_size per_device_eval_batch_size learning_rate "
    "gradient_accumulation_steps activation_checkpointing bf16 fp16 lr_scheduler_type warmup_steps eval_strategy "
    "eval_steps save_steps save_total_limit load_best_model_at_end logging_steps report_to run_name seed "
    "dataloader_num_workers use_cpu push_to_hub hub_model_id".split()
)
"""What most trainings set, of the options that are Transformers' own."""

_WIDEST_CHOICE = 60
_FIRST_SENTENCE = re.compile(r"(?<=[.;])\s")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written; options under one name each; defaults where there are any."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def add_usage(self, usage: Any, actions: Iterable[Any], groups: Any, prefix: str | None = None) -> None:
        """Show the required options alone: the list below has them all."""
        needed = [action for action in actions if action.required or not action.option_strings]
        flags = " ".join(self._format_action_invocation(action) for action in needed)
        super().add_usage(usage or f"%(prog)s {flags} [OPTIONS]".replace("  ", " "), [], groups, prefix)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        name = action.option_strings[0] if action.dest != "help" else "--help"
        if action.const is True and action.default is True:
            return f"{name}, --no_{action.dest}"
        if action.nargs == 0 or action.const is True:  # a switch, with or without a value
            return name
        if action.choices and len(choices := ",".join(map(str, action.choices))) <= _WIDEST_CHOICE:
            return f"{name} {{{choices}}}"
        value = {int: "N", float: "X"}.get(action.type, "TEXT") if isinstance(action.type, type) else "TEXT"
        return f"{name} {value} ..." if action.nargs in ("+", "*") else f"{name} {value}"

    def _format_action(self, action: argparse.Action) -> str:
        is_opposite = isinstance(action, argparse._StoreFalseAction)  # named beside the option itself
        return "" if is_opposite else super()._format_action(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required:
            return f"{text} (required)"
        if action.const is True and action.default is True:
            return f"{text} (default: on)"
        said = action.nargs == 0 or not action.option_strings or "default:" in text
        silent = said or isinstance(action.default, bool) or action.default in (None, argparse.SUPPRESS, [], "")
        return text if silent else f"{text} (default: %(default)s)"


def arrange(parser: argparse.ArgumentParser, own: Collection[str], *, everything: bool) -> None:
    """Put the options that are the library's first, the common ones of Transformers behind, and only name the others.

    Args:
        parser: A parser with options of Transformers among its own.
        own: Names of the library's options.
        everything: Explain all of them.
    """
    group = parser.add_argument_group("options of Transformers' Trainer, the common ones")
    rare = []
    for action in [action for action in parser._optionals._group_actions if action.dest not in own]:
        action.help = _FIRST_SENTENCE.split(" ".join((action.help or "").split()))[0]
        if action.dest not in COMMON and not everything:
            rare.append(action.option_strings[0])
            action.help = argparse.SUPPRESS
        parser._optionals._group_actions.remove(action)
        group._group_actions.append(action)
    if rare:
        names = textwrap.wrap(", ".join(sorted(rare)), 100, break_on_hyphens=False)
        parser.epilog = "\n  ".join(["the others, which --help_all explains:", *names])
