"""Make a student out of a teacher: the command `distilwhisper create-student`.

python examples/create_student.py --teacher openai/whisper-large-v3 --output_dir student
"""

import sys

from distilwhisper.cli import main

if __name__ == "__main__":
    sys.exit(main(["create-student", *sys.argv[1:]]))
