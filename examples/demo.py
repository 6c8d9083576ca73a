"""The whole method on speech made on the spot: the command `distilwhisper demo`.

make demo
make demo FILTER=off
make demo TEACHER=openai/whisper-tiny.en OUTPUT=outputs/tiny.en     # with network access
python examples/demo.py --train_samples 200 --steps 20 --test_samples 20 --output_dir outputs/quick     # a minute
"""

import sys

from distilwhisper.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
