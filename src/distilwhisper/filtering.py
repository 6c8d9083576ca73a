"""The WER filter: a pseudo-label that strays too far from the reference transcript is not trained on.

Section 3.3 of the Distil-Whisper paper (arXiv 2311.00430): drop a sample when
``WER(norm(reference), norm(label)) > threshold``. It needs the texts alone; audio is never decoded. Where there are
no transcripts, `LabelFilter` judges the labels by `LabelRules`; the WER filter takes such rules too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from datasets import Dataset

from distilwhisper.dataset_filters import DatasetFilter, each_split, with_columns
from distilwhisper.filter_reports import (
    DROP_REASONS,
    HISTOGRAM_EDGES,
    PART_WERS_COLUMN,
    WER_COLUMN,
    Decision,
    FilterReport,
)
from distilwhisper.label_rules import RECOMMENDED_RULES, LabelRules
from distilwhisper.label_scores import SCORE_FEATURES, Columns, LabelScorer, word_error_rate
from distilwhisper.normalizers import Normalizer, strip_special_tokens

__all__ = ["DROP_REASONS", "HISTOGRAM_EDGES", "WER_COLUMN", "Decision", "FilterReport", "LabelFilter", "WERFilter"]

DatasetT = TypeVar("DatasetT")


class WERFilter(DatasetFilter):
    """Keep the samples whose pseudo-label agrees with the reference transcript.

    Both texts are normalised; special and timestamp tokens in a label are ignored. The rules, in order:

    * no label, or no reference: dropped (``missing_label``, ``missing_reference``);
    * both empty once normalised: kept with WER 0, as teacher and transcript agree that nothing is said;
    * an empty reference with a label: dropped (``empty_reference``), as nothing supports the label;
    * an empty label with a reference: dropped (``empty_label``) at any threshold, as speech was missed;
    * WER above the threshold: dropped (``wer``); at the threshold exactly: kept;
    * WER of a part above the threshold, only if asked: dropped (``part_wer``);
    * a label all in capitals: dropped (``shouting``, see `is_shouting`), lest the student learn to write so.
      References in capitals, LibriSpeech's for example, do no harm: the normaliser lowers them;
    * `LabelRules`, if given, in the order of their reasons.

    Args:
        threshold: Largest word error rate to keep, a fraction from 0 to 1; the paper's is 0.10.
        language: Language of the texts: chooses the normaliser, see `get_normalizer`. None means English.
        normalizer: Used instead of the language's own, for every language.
        drop_shouting: Whether to drop labels in capitals.
        rules: Rules that need no transcript; judged by `filter` and `score`, which see the columns they need.
        parts: How packed samples are judged: ``joined``, by the whole text; ``any``, also by each part, so that one bad
            part drops the sample. The parts are read from the column ``parts``, a list of dictionaries with ``text``;
            a row without a list has no parts. See `part_wers`.

    Attributes:
        report: What the last call of `filter` kept and dropped; for a streamed dataset, of the samples read
            so far in this process, repeated passes included.
        dropped: What the last call of `filter` dropped: ``split``, ``index``, ``id``, ``reason`` and ``wer``; None
            for a streamed dataset.

    Raises:
        ValueError: If the threshold is not a fraction from 0 to 1, or the language is unknown.
    """

    def __init__(
        self,
        threshold: float = 0.10,
        language: str | None = "en",
        *,
        normalizer: Normalizer | None = None,
        drop_shouting: bool = True,
        rules: LabelRules | None = None,
        parts: str = "joined",
    ) -> None:
        if not 0 <= threshold <= 1:
            hint = f": did you mean {threshold / 100:g}?" if 1 < threshold <= 100 else ""
            raise ValueError(f"threshold must be a fraction from 0 to 1, not {threshold}{hint}")
        if parts not in ("joined", "any"):
            raise ValueError(f"parts must be 'joined' or 'any', not {parts!r}")
        scorer = LabelScorer(
            language, normalizer=normalizer, drop_shouting=drop_shouting, rules=rules, judge_parts=parts == "any"
        )
        super().__init__(scorer, threshold, [WER_COLUMN, PART_WERS_COLUMN][: 1 + scorer.judge_parts])

    def wer(self, reference: str, hypothesis: str, *, language: str | None = None) -> float:
        """Return the word error rate of a label, a fraction; infinite for words where the reference has none.

        Args:
            reference: The transcript that came with the audio.
            hypothesis: The label, with or without special tokens.
            language: Language of this sample; by default that of the filter.
        """
        words = self.scorer.words(strip_special_tokens(hypothesis), language)
        return word_error_rate(self.scorer.words(reference, language), words)

    def part_wers(self, parts: Sequence[str], hypothesis: str, *, language: str | None = None) -> list[float]:
        """Return the word error rate of each part of a packed sample, by aligning their joined words with the label.

        A word that the label adds counts for the part before it. A part without words has none, and rate 0.

        Args:
            parts: The transcripts of the parts, in order.
            hypothesis: The label of the whole.
            language: Language of this sample; by default that of the filter.
        """
        words = self.scorer.words(strip_special_tokens(hypothesis), language)
        return self.scorer.part_wers(parts, words, language)

    def keep(self, reference: str | None, hypothesis: str | None, *, language: str | None = None) -> bool:
        """Return whether a sample is kept. Arguments as for `wer`; None stands for a missing text."""
        return self.decide(reference, hypothesis, language=language).reason is None

    def decide(self, reference: str | None, hypothesis: str | None, *, language: str | None = None) -> Decision:
        """Return whether a sample is kept, or why not, and its word error rate. Arguments as for `keep`.

        It sees the two texts alone, so rules that need more do not judge here.
        """
        row = {"label": hypothesis, "reference": reference, "language": language}
        return self.decision(self.scorer.score(row, Columns("label", "reference", "language")))

    def filter(
        self,
        dataset: DatasetT,
        reference_column: str = "text",
        hypothesis_column: str = "whisper_transcript",
        *,
        audio_column: str = "audio",
        language_column: str | None = None,
        id_column: str | None = None,
        by: str | Sequence[str] = (),
        num_proc: int | None = None,
    ) -> DatasetT:
        """Return the samples that are kept, with their word error rate in the column `WER_COLUMN`.

        The report's hours come from the column ``duration_s`` or ``duration`` (seconds); without one, from
        the headers of the audio files. Audio is not decoded; a streamed dataset returns it as bytes. Scores that
        `score` left in the dataset are used again where they are of the same texts, language and rule.

        Args:
            dataset: A `Dataset`, `IterableDataset`, or dictionary of either; the same type comes back.
            reference_column: Column of the transcripts that came with the audio.
            hypothesis_column: Column of the labels.
            audio_column: Column of the audio; need not exist.
            language_column: Column of each sample's language; None in it means the filter's own.
            id_column: Column that names samples in the report; by default ``id``, where there is one.
            by: Column, or columns, by whose values the report counts too: language, data set.
            num_proc: Processes that compare the texts of a stored dataset; by default this one.

        Raises:
            ValueError: If a column is missing.
            TypeError: If the dataset is of another type.
        """
        groups = (by,) if isinstance(by, str) else tuple(by)
        columns = Columns(hypothesis_column, reference_column, language_column, audio_column, id_column, groups)
        return self.run(dataset, columns, num_proc)

    def score(
        self,
        dataset: DatasetT,
        reference_column: str = "text",
        hypothesis_column: str = "whisper_transcript",
        *,
        audio_column: str = "audio",
        language_column: str | None = None,
        num_proc: int | None = None,
    ) -> DatasetT:
        """Return all samples with the columns of `SCORE_FEATURES`, which hold at every threshold.

        `threshold_sweep` reads them, and `filter` does not compare again what they hold. It knows its own scores by
        `KEY_COLUMN`: a changed text, another language, an own normaliser, or a later release that counts otherwise, has
        another key, and only such rows are compared again. Rules and parts are always judged anew.

        Arguments and errors are those of `filter`.
        """
        columns = Columns(hypothesis_column, reference_column, language_column, audio_column, keyed=True)

        def add_scores(part: Any, _: str | None) -> Any:
            if not isinstance(part, Dataset):
                raise TypeError("a stream is not scored apart; filter it, or save it and score what was saved")
            return with_columns(part, self.scores(part, columns, num_proc)[0].select_columns(list(SCORE_FEATURES)))

        scored: DatasetT = each_split(dataset, add_scores)
        return scored


class LabelFilter(DatasetFilter):
    """Keep the labels that break no rule, where there are no transcripts.

    The rules, in order: no label (``missing_label``); a label without words (``empty_label``), as nothing says that
    the recording is silent; a label all in capitals (``shouting``); `LabelRules` in the order of their reasons.

    Args:
        rules: The rules.
        language: Language of the labels, see `WERFilter`.
        normalizer: Used instead of the language's own, for every language.
        drop_shouting: Whether to drop labels in capitals.

    Attributes:
        report: As for `WERFilter`.
        dropped: As for `WERFilter`.

    Raises:
        ValueError: If the language is unknown.
    """

    def __init__(
        self,
        rules: LabelRules = RECOMMENDED_RULES,
        language: str | None = "en",
        *,
        normalizer: Normalizer | None = None,
        drop_shouting: bool = True,
    ) -> None:
        scorer = LabelScorer(language, normalizer=normalizer, drop_shouting=drop_shouting, rules=rules)
        super().__init__(scorer, None, [])

    def filter(
        self,
        dataset: DatasetT,
        hypothesis_column: str = "whisper_transcript",
        *,
        audio_column: str = "audio",
        language_column: str | None = None,
        id_column: str | None = None,
        by: str | Sequence[str] = (),
        num_proc: int | None = None,
    ) -> DatasetT:
        """Return the samples that are kept. Arguments and errors are those of `WERFilter.filter`."""
        groups = (by,) if isinstance(by, str) else tuple(by)
        columns = Columns(hypothesis_column, None, language_column, audio_column, id_column, groups)
        return self.run(dataset, columns, num_proc)
