"""Label inside Ray Data, for those whose cluster is that: pip install 'distilwhisper[ray]'.

python examples/ray_label.py --model examples/teacher --dataset recordings/ --language en --output_dir outputs/labels

Ray deals numbers of rows out to actors, each with a teacher and the data set of its own, and deals them again where a
machine fails. The result is parquet, which load_speech reads: all rows with their number in "row", in no particular
order; those that could not be used have no label and their reason in "set_aside". Without Ray, examples/pseudo_label.py
does the same on any machines that share a directory.
"""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, Value, concatenate_datasets
from transformers import HfArgumentParser

from distilwhisper import AudioError, PseudoLabeler, load_speech
from distilwhisper.labels import LABEL_FEATURES, label_of, without_labels


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Hub id or path of the teacher, where all machines can read it."})
    dataset: str = field(metadata={"help": "Whatever load_speech reads, where all machines can read it."})
    output_dir: str = field(metadata={"help": "Absolute path of a directory for parquet files."})
    split: str | None = field(default=None, metadata={"help": "Split, or several joined with +."})
    language: str | None = field(default=None, metadata={"help": "Language; default: detected for each recording."})
    batch_size: int = field(default=16, metadata={"help": "Recordings at a time."})
    actors: int = field(default=1, metadata={"help": "Teachers that work at the same time."})
    gpus: float = field(default=0, metadata={"help": "GPUs for each of them."})


class Labeler:
    """A teacher that stays in memory from one batch of rows to the next."""

    def __init__(self, args: Arguments) -> None:
        self.data = without_labels(load_speech(args.dataset, args.split).with_format(None), prompts=False)
        self.labeler = PseudoLabeler(args.model, language=args.language, batch_size=args.batch_size)

    def __call__(self, batch: dict[str, Any]) -> Any:
        rows = self.data.select(batch["id"].tolist())
        columns = Features({"row": Value("int64"), **LABEL_FEATURES, "set_aside": Value("string")})
        labels: list[dict[str, Any]] = [dict.fromkeys(columns) | {"row": int(number)} for number in batch["id"]]
        recordings = ((place, row["audio"]) for place, row in enumerate(rows))
        for place, result in self.labeler.label_rows(recordings, num_workers=1):
            labels[place] |= {"set_aside": result.reason} if isinstance(result, AudioError) else label_of(result)
        if "duration_s" in rows.features:
            rows = rows.remove_columns("duration_s")
        return concatenate_datasets([rows, Dataset.from_list(labels, columns)], axis=1).with_format("arrow")[:]


def main() -> None:
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    import ray

    total = len(load_speech(args.dataset, args.split))
    labelled = ray.data.range(total).map_batches(
        Labeler,
        fn_constructor_args=(args,),
        batch_size=16 * args.batch_size,
        compute=ray.data.ActorPoolStrategy(size=args.actors),
        num_gpus=args.gpus,
    )
    labelled.write_parquet(args.output_dir)
    print(f"{total:,} rows, saved in {args.output_dir}")


if __name__ == "__main__":
    main()
