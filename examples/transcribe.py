"""Transcribe recordings of any length: the command `distilwhisper transcribe`.

python examples/transcribe.py --model examples/teacher --audio recording.wav --language en
"""

import sys

from distilwhisper.cli import main

if __name__ == "__main__":
    sys.exit(main(["transcribe", *sys.argv[1:]]))
