"""Transcribe a data set with the teacher: the command `distilwhisper pseudo-label`.

python examples/pseudo_label.py --model openai/whisper-large-v3 --dataset recordings/ --language en --output_dir labels
"""

import sys

from distilwhisper.cli import main

if __name__ == "__main__":
    sys.exit(main(["pseudo-label", *sys.argv[1:]]))
