"""Cut long recordings at pauses into windows: the command `distilwhisper segment`.

python examples/segment_recordings.py --dataset podcasts/ --output_dir windows
"""

import sys

from distilwhisper.cli import main

if __name__ == "__main__":
    sys.exit(main(["segment", *sys.argv[1:]]))
