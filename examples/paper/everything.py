"""All experiments of the paper, in one process: tables 5 to 12 and 16 to 25, and Figure 2.

python examples/paper/everything.py
python examples/paper/everything.py --results_dir docs/results/paper
"""

import attention
import chunk_length
import data_size
import early_exit
import headline
import long_form
import model_size
import noise
import objective
import report
import short_form
import speculative_decoding
import wer_threshold
from common import Lab, main

EXPERIMENTS = (
    wer_threshold,
    data_size,
    objective,
    model_size,
    short_form,
    noise,
    early_exit,
    attention,
    long_form,
    chunk_length,
    headline,
    speculative_decoding,
    report,
)


def run(lab: Lab) -> None:
    for experiment in EXPERIMENTS:
        experiment.run(lab)
    print({stage: round(seconds, 1) for stage, seconds in lab.stages.seconds.items()})


if __name__ == "__main__":
    main(run, __doc__)
