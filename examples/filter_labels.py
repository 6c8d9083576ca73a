"""Drop samples whose label disagrees with the reference: the command `distilwhisper filter`.

python examples/filter_labels.py --dataset labels --threshold 0.10 --language en --output_dir kept
"""

import sys

from distilwhisper.cli import main

if __name__ == "__main__":
    sys.exit(main(["filter", *sys.argv[1:]]))
