"""Distil a tiny student from saved data; started by the tests as one or several processes, or killed.

python tests/programs/distil.py DATA MODELS --output_dir OUT [training arguments]
"""

import json
import os
import sys
from pathlib import Path

from accelerate import DistributedType, PartialState
from datasets import load_from_disk
from transformers import HfArgumentParser, WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper import DistillationTrainer, DistillationTrainingArguments, last_checkpoint


def shard_on_cpus(args: DistillationTrainingArguments) -> None:
    """Have Accelerate use FSDP2, which it offers on accelerators alone, on CPU processes too."""
    assert args.device.type == "cpu"  # asking for it starts the process group, and forgets what was set before
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def main() -> None:
    data, models, *flags = sys.argv[1:]
    (args,) = HfArgumentParser(DistillationTrainingArguments).parse_args_into_dataclasses(flags)
    if "FSDP_VERSION" in os.environ:
        shard_on_cpus(args)
    dataset = load_from_disk(data)
    trainer = DistillationTrainer(
        model=WhisperForConditionalGeneration.from_pretrained(f"{models}/student"),
        teacher_model=f"{models}/teacher",
        args=args,
        train_dataset=dataset.to_iterable_dataset() if "STREAM" in os.environ else dataset,
        eval_dataset={"all": dataset, "some": dataset.select(range(3))},
        processing_class=WhisperProcessor.from_pretrained(f"{models}/student"),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    trainer.save_model()
    metrics = trainer.evaluate() if args.do_eval else {}
    if trainer.is_world_process_zero():
        kind = str(trainer.accelerator.distributed_type.value)
        result = {"log": trainer.state.log_history, "metrics": metrics, "distributed": kind}
        (Path(args.output_dir) / "result.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
