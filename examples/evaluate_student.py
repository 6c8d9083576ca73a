"""Compare a student with its teacher: word error rates on several sets, and speed.

python examples/evaluate_student.py --model distilled --teacher openai/whisper-large-v3 --data cv=test_cv \
        --data vox=voxpopuli:test --language de --output evaluation.json
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from distilwhisper import Transcriber, compare_latency, evaluate, load_speech


@dataclass
class Arguments:
    model: str = field(metadata={"help": "The student: Hub id or path."})
    data: list[str] = field(
        metadata={"help": "Test sets as name=source or name=source:split; repeat or list.", "action": "extend"}
    )
    teacher: str | None = field(default=None, metadata={"help": "Hub id or path, to compare with."})
    language: str = field(default="en", metadata={"help": "Language of the recordings."})
    text_column: str = field(default="text", metadata={"help": "Column of the reference transcripts."})
    batch_size: int = field(default=16, metadata={"help": "Recordings at a time."})
    latency_samples: int = field(default=20, metadata={"help": "Recordings that the speed is measured on."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def main() -> None:
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    sets = {}
    for entry in args.data:
        name, _, source = entry.rpartition("=")
        source, _, split = source.partition(":")
        sets[name or source] = load_speech(source, split or None)
    settings = {"language": args.language, "batch_size": args.batch_size}
    student = Transcriber(args.model, **settings)
    result = evaluate(student, sets, language=args.language, text_column=args.text_column)
    print(f"{args.model}\n{result}")
    output = {"student": result.to_dict()}
    if args.teacher:
        teacher = Transcriber(args.teacher, **settings)
        reference = evaluate(teacher, sets, language=args.language, text_column=args.text_column)
        print(f"\n{args.teacher}\n{reference}\n")
        first = next(iter(sets.values()))
        audio = first.select(range(min(args.latency_samples, len(first))))["audio"]
        latency = compare_latency(student, teacher, audio)
        print(latency)
        output |= {"teacher": reference.to_dict(), "latency": latency.to_dict()}
    if args.output:
        Path(args.output).write_text(json.dumps(output, indent=2))


if __name__ == "__main__":
    main()
