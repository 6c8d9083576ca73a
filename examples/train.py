r"""Distil: the command `distilwhisper train`, as a file for `accelerate launch`.

    accelerate launch examples/train.py --student student --teacher openai/whisper-large-v3 --train kept \
        --eval cv=validation_cv vox=validation_vox --preset paper --output_dir distilled

Accelerate configurations for one GPU, many GPUs, several machines and FSDP2 lie in examples/accelerate/
(accelerate launch --config_file ...).
"""

import sys

from distilwhisper.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
