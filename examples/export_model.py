"""Write a student for another runtime, and check it there: the command `distilwhisper export`.

python examples/export_model.py --model_dir distilled --format ctranslate2 --dtype int8 --output_dir exported
"""

import sys

from distilwhisper.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
