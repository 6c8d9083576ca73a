"""Distil a teacher into a student, from synthesised speech to a page with plots, on two CPU cores in minutes.

distilwhisper demo                                       # in a clone of the repository, which has a small teacher
distilwhisper demo --filter off                          # stages that are done are not done again
distilwhisper demo --teacher openai/whisper-tiny.en --output_dir outputs/tiny.en     # from the Hub, anywhere
distilwhisper demo --train_samples 200 --steps 20 --test_samples 20 --output_dir outputs/quick     # a minute

Needs the extra demo: pip install 'distilwhisper[demo]'. Each stage saves its result in the output directory. A run that
was stopped goes on where it was; a run with other settings repeats the stages that they concern.
"""

from __future__ import annotations

import logging
import sys

import transformers

from distilwhisper.demonstration import DemoConfig, Demonstration

OPTIONS = (DemoConfig,)


def run(config: DemoConfig) -> str:
    """Run the stages; return the table, and where the page is."""
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("distilwhisper").setLevel(logging.WARNING)  # the stages say what their reports hold
    report, page = Demonstration(config, _say).run()
    return f"\n{report}\n\nTable: {page.with_name('results.md')}\nPage with plots: {page}"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()  # it belongs between the progress bars, which are not held back
