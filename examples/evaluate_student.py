"""Compare a student with its teacher: the command `distilwhisper evaluate`.

python examples/evaluate_student.py --model distilled --teacher openai/whisper-large-v3 --data read=test_read/
"""

import sys

from distilwhisper.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
