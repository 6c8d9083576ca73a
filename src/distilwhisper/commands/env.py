"""Show what this machine has: versions, devices, attention kernels, optional packages and what to install.

distilwhisper env
distilwhisper env --json > machine.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from distilwhisper.environment import inspect_environment


@dataclass
class Arguments:
    """Options of the command."""

    json: bool = field(default=False, metadata={"help": "As JSON."})


OPTIONS = (Arguments,)


def run(args: Arguments) -> str:
    """Return a description of the machine."""
    environment = inspect_environment()
    return json.dumps(environment.to_dict(), indent=2) if args.json else str(environment)
