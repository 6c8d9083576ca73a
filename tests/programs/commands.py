"""Runs many command lines, each in a process of its own that is forked off after the slow imports.

python commands.py cases.json results.json
"""

import json
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import distilwhisper
from distilwhisper.cli import COMMANDS, main


def run(arguments, without):
    """Return exit code, output and error output of ``distilwhisper ARGUMENTS``, where a package is missing."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (process := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            if without:
                sys.modules[without] = None  # what Python itself puts there for a module that cannot be imported
            code = 70
            try:
                code = main(arguments)
            except SystemExit as stop:
                code = stop.code
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code if isinstance(code, int) else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return [code, *texts]


if __name__ == "__main__":
    for name in distilwhisper.__all__:
        getattr(distilwhisper, name)
    for name in COMMANDS:
        import_module(f"distilwhisper.commands.{name.replace('-', '_')}")
    cases = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([run(case["arguments"], case["without"]) for case in cases]))
