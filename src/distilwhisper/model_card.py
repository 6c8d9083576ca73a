"""The model card of a student: metadata that the Hub reads, results, recipe, and how to use each export."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData

from distilwhisper.reports import AVERAGES_NOTE, DistillationReport
from distilwhisper.tables import escape_markdown, markdown_table

if TYPE_CHECKING:
    from distilwhisper.results import EvaluationResult

_TASK = "automatic-speech-recognition"
_READ = 'import soundfile\n\nsamples, rate = soundfile.read("audio.wav", dtype="float32")  # 16 kHz, mono\n'

SNIPPETS = {
    "transformers": f"""from transformers import pipeline
{_READ}transcriber = pipeline("{_TASK}", model="@repo"@generate)
print(transcriber({{"raw": samples, "sampling_rate": rate}})["text"])""",
    "decoder-only": f"""from transformers import AutoModelForCausalLM, pipeline
{_READ}# The teacher's own transcript, sooner: the student guesses ahead, the teacher checks.
assistant = AutoModelForCausalLM.from_pretrained("@repo", subfolder="decoder-only")
transcriber = pipeline("{_TASK}", model="@teacher"@generate)
options = {{"assistant_model": assistant}}
print(transcriber({{"raw": samples, "sampling_rate": rate}}, generate_kwargs=options)["text"])""",
    "openai-whisper": f"""import whisper
from huggingface_hub import hf_hub_download
{_READ}model = whisper.load_model(hf_hub_download("@repo", "openai-whisper/@file"))
print(model.transcribe(samples, language="@language")["text"])""",
    "ctranslate2": """from faster_whisper import WhisperModel
from huggingface_hub import snapshot_download

model = WhisperModel(snapshot_download("@repo", allow_patterns="ctranslate2/*") + "/ctranslate2")
segments, _ = model.transcribe("audio.wav", language="@language")
print("".join(segment.text for segment in segments))""",
    "ggml": f"""from huggingface_hub import hf_hub_download
from pywhispercpp.model import Model
{_READ}model = Model(hf_hub_download("@repo", "ggml/@file"), language="@language")
print(" ".join(segment.text for segment in model.transcribe(samples)))""",
    "onnx": f"""import {{ pipeline }} from "@huggingface/transformers";

const transcriber = await pipeline("{_TASK}", "@repo", {{ dtype: "@dtype" }});
const {{ text }} = await transcriber(samples); // Float32Array, 16 kHz, mono
console.log(text);""",
}
"""How each export is used; what stands behind an ``@`` is filled in."""

_TITLES = {
    "transformers": "Transformers",
    "decoder-only": "Speculative decoding with the teacher (Transformers)",
    "openai-whisper": "openai-whisper",
    "ctranslate2": "faster-whisper (CTranslate2)",
    "ggml": "whisper.cpp (through pywhispercpp; `whisper-cli -m FILE` takes the same file)",
    "onnx": "Transformers.js",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student was made, as far as its own config does not say.

    Attributes:
        teacher_revision: Revision of the teacher.
        datasets: Names or Hub ids of the training sets.
        hours: Hours of audio trained on; default those that the filter kept.
        filter: ``FilterReport.to_dict`` of the filter; None if none ran.
        steps: Updates.
        settings: ``DistillationTrainingArguments.to_dict``, of which loss weights, temperature, learning rate, batch
            and seed are listed.
    """

    teacher_revision: str | None = None
    datasets: Sequence[str] = ()
    hours: float | None = None
    filter: Mapping[str, Any] | None = None
    steps: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


_SETTINGS = (
    *("kl_weight", "pl_weight", "mse_weight", "temperature", "divergence", "timestamp_probability", "learning_rate"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "freeze_encoder", "seed"),
)


def render_model_card(
    model_dir: str | Path,
    repo_id: str,
    *,
    results: EvaluationResult | DistillationReport | None = None,
    recipe: Recipe | None = None,
    exports: Mapping[str, str | Path] | None = None,
    language: str = "en",
    license: str = "mit",
    limits: str | None = None,
) -> str:
    """Return the model card of a saved student, in Markdown with the Hub's metadata before it.

    Args:
        model_dir: The student.
        repo_id: Its name on the Hub, which the examples load.
        results: How good it is; each test set also becomes an entry of the metadata's ``model-index``.
        recipe: How it was made.
        exports: Directory of each export by format, as for `push_to_hub`.
        language: Code of the language it was trained on.
        license: Licence of the weights, by the Hub's name; the teacher's is often to be kept.
        limits: What it cannot do; by default what follows from how it was made.

    Raises:
        ValueError: For an export of an unknown format.
    """
    directory, exports, recipe = Path(model_dir), dict(exports or {}), recipe or Recipe()
    if unknown := exports.keys() - SNIPPETS.keys():
        raise ValueError(f"there is no format {min(unknown)!r}; the formats are {', '.join(SNIPPETS)}")
    distillation = _read(directory / "config.json").get("distillation") or {}
    teacher = distillation.get("teacher")
    data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag=_TASK,
        tags=["whisper", "distillation", *(["transformers.js"] if "onnx" in exports else [])],
        base_model=teacher if teacher and _is_hub_id(teacher) else None,
        datasets=[name for name in recipe.datasets if _is_hub_id(name)] or None,
        metrics=["wer"],
        model_name=repo_id.rpartition("/")[2],
        eval_results=_eval_results(results) or None,
    )
    formats = dict.fromkeys(["transformers", *exports])
    snippets = [_snippet(format, directory, repo_id, teacher, exports, language) for format in formats]
    parts = [
        f"# {escape_markdown(repo_id.rpartition('/')[2])}",
        _summary(teacher, distillation),
        *_results(results),
        *_recipe(recipe, teacher, distillation),
        "## Use",
        *snippets,
        "## Limits",
        limits or _limits(directory, language),
        "## Licence",
        f"The weights are under the licence `{license}`. Made with `distilwhisper` by the method of "
        "[Distil-Whisper](https://arxiv.org/abs/2311.00430).",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).exists()


def _eval_results(results: EvaluationResult | DistillationReport | None) -> list[EvalResult]:
    if results is None:
        return []
    if isinstance(results, DistillationReport):
        rates = results.student.wer
    else:
        rates = {name: scores.wer for name, scores in results.sets.items() if scores.normalized.samples}
    return [
        EvalResult(
            task_type=_TASK,
            task_name="Automatic Speech Recognition",
            dataset_type=name,
            dataset_name=name,
            metric_type="wer",
            metric_name="WER (%), normalised",
            metric_value=round(100 * rate, 2),
        )
        for name, rate in rates.items()
    ]


def _summary(teacher: str | None, distillation: Mapping[str, Any]) -> str:
    of = f" of `{teacher}`" if teacher else ""
    text = f"A distilled Whisper: a smaller copy{of} that was trained on its transcripts."
    if distillation:
        kept = distillation["decoder_layer_indices"]
        text += f" It keeps {len(kept)} of the teacher's {distillation['teacher_decoder_layers']} decoder layers."
    return text


def _results(results: EvaluationResult | DistillationReport | None) -> list[str]:
    if results is None:
        return []
    if isinstance(results, DistillationReport):
        return ["## Results", results.headline(), markdown_table(results.table()), AVERAGES_NOTE]
    return ["## Results", str(results), "WER is the word error rate after Whisper's normaliser, lower is better."]


def _recipe(recipe: Recipe, teacher: str | None, distillation: Mapping[str, Any]) -> list[str]:
    hours = recipe.hours
    lines: dict[str, Any] = {"teacher": teacher, "teacher revision": recipe.teacher_revision}
    for part in ("encoder", "decoder") if distillation else ():
        layers = ", ".join(map(str, distillation[f"{part}_layer_indices"]))
        lines[f"{part} layers kept (from 0)"] = f"{layers} of {distillation[f'teacher_{part}_layers']}"
    lines["training data"] = ", ".join(recipe.datasets)
    if recipe.filter:
        kept, total = recipe.filter["kept"], recipe.filter["total"]
        lines["filter"] = (
            f"WER of the label at most {100 * recipe.filter['threshold']:g} %, "
            f"which kept {kept['samples']:,} of {total['samples']:,} samples"
        )
        hours = kept["hours"] if hours is None else hours
    lines["hours of audio"] = None if hours is None else f"{hours:,.2f}"
    lines["updates"] = recipe.steps
    lines |= {name: recipe.settings[name] for name in _SETTINGS if name in recipe.settings}
    shown = [f"- {name}: {escape_markdown(str(value))}" for name, value in lines.items() if value not in (None, "")]
    return ["## Recipe", "\n".join(shown)] if shown else []


def _snippet(
    format: str, model_dir: Path, repo_id: str, teacher: str | None, exports: Mapping[str, str | Path], language: str
) -> str:
    multilingual = _read(model_dir / "generation_config.json").get("is_multilingual", True)
    values = {
        "@repo": repo_id,
        "@teacher": teacher or "TEACHER",
        "@language": language,
        "@generate": f', generate_kwargs={{"language": "{language}"}}' if multilingual else "",
    }
    if format in ("ggml", "openai-whisper"):
        (file,) = (path for path in Path(exports[format]).iterdir() if path.suffix in (".bin", ".pt"))
        values["@file"] = file.name
    if format == "onnx":
        values["@dtype"] = "fp32" if Path(exports[format], "onnx", "encoder_model.onnx").exists() else "q8"
    code = SNIPPETS[format]
    for name, value in values.items():
        code = code.replace(name, value)
    if format == "onnx" and multilingual:
        code = code.replace("transcriber(samples)", f'transcriber(samples, {{ language: "{language}" }})')
    return f"### {_TITLES[format]}\n\n```{'javascript' if format == 'onnx' else 'python'}\n{code}\n```"


def _limits(model_dir: Path, language: str) -> str:
    window_s = _read(model_dir / "config.json")["max_source_positions"] / 50
    return (
        f"It was trained to transcribe the language `{language}` and repeats what its teacher gets wrong; other "
        f"languages and translation, if the teacher had them, were not trained. It hears {window_s:g} s at a time. On "
        "silence, noise and music it may invent words, as every Whisper does. Test it on your own recordings before "
        "you rely on it."
    )
