"""The sections of a report's page: figures and tables as HTML, each left out where there is nothing to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from distilwhisper.pages import LEGEND, figure, grid, mark_words, mark_words_in_markdown, scroll_box, section
from distilwhisper.plots import (
    plot_bars,
    plot_curves,
    plot_error_kinds,
    plot_histogram,
    plot_label_histogram,
    plot_trade_off,
    read_curves,
)
from distilwhisper.tables import escape_markdown, html_table

_LOSSES = {"": "total", "kl": "KL", "pl": "pseudo-labels", "mse": "hidden states"}

Pairs = Sequence[Sequence[float]]


def accuracy_section(
    wer: Mapping[str, Mapping[str, float]],
    where: str,
    averages: Mapping[str, float],
    parameters: Mapping[str, int],
    *,
    latency_ms: Mapping[str, float],
    latency_by_batch: Mapping[str, Pairs],
) -> str:
    """Return word error rates by set, and against size and time.

    Args:
        wer: Model to set to word error rate, a fraction.
        where: What the averages are over: "out of distribution".
        averages: Model to average word error rate, a fraction.
        parameters: Model to number of parameters.
        latency_ms: Model to milliseconds of an utterance alone.
        latency_by_batch: Model to pairs of batch size and milliseconds of an utterance.
    """
    rates = {model: {name: 100 * rate for name, rate in by_set.items()} for model, by_set in wer.items()}
    chart = plot_bars(rates, "Bars of the word error rates in the table above, by set and model.")
    figures = [figure(chart.svg(), "Word error rate by set", "Shorter is better. A cut bar is longer than shown.")]
    sizes = {name: count / 1e6 for name, count in parameters.items()}
    for costs, cost, unit in ((latency_ms, "latency", "ms per utterance"), (sizes, "size", "million parameters")):
        points = {name: (cost_of, 100 * averages[name]) for name, cost_of in costs.items()}
        if points:
            told = ", ".join(f"{name} {amount:.3g} and {rate:.1f} %" for name, (amount, rate) in points.items())
            described = f"Word error rate against {cost}, in {unit}: {told}."
            chart = plot_trade_off(points, f"WER {where} (%)", described, xlabel=unit, models=list(wer))
            figures.append(figure(chart.svg(), f"Word error rate against {cost}", "Lower left is better."))
    if latency_by_batch:
        ticks = {size: f"{size:g}" for pairs in latency_by_batch.values() for size, _ in pairs}
        described = "Milliseconds of an utterance by batch size"
        axis: dict[str, Any] = {"xlabel": "batch size", "ticks": ticks}
        chart = plot_curves(latency_by_batch, "ms per utterance", described, **axis, models=list(wer))
        figures.append(figure(chart.svg(), "Latency by batch size", "Time of a batch over its utterances."))
    return section("Accuracy and speed", grid(*figures))


def errors_section(
    kinds: Mapping[str, Mapping[str, float]], utterances: Mapping[str, Sequence[float]]
) -> Iterator[str]:
    """Yield errors by kind, and how many utterances have which word error rate; all rates are fractions."""
    figures = []
    if kinds:
        shown = {model: {kind: 100 * rate for kind, rate in by_kind.items()} for model, by_kind in kinds.items()}
        told = "; ".join(f"{model} {', '.join(f'{r:.1f} % {k}' for k, r in by.items())}" for model, by in shown.items())
        chart = plot_error_kinds(shown, f"Errors by kind: {told}.")
        figures.append(figure(chart.svg(), "Kinds of errors", "Means over the sets."))
    if utterances:
        rates = {model: [100 * rate for rate in values] for model, values in utterances.items()}
        perfect = ", ".join(f"{model} {sum(not rate for rate in values)}" for model, values in rates.items())
        chart = plot_histogram(rates, f"Utterances by word error rate; without any error: {perfect}.")
        figures.append(figure(chart.svg(), "Word error rate of the utterances", "Of all sets together."))
    if figures:
        yield section("Errors", grid(*figures))


def noise_section(wer_by_snr: Mapping[str, Mapping[str, Pairs]]) -> Iterator[str]:
    """Yield word error rates by ratio of speech to noise, a figure for each kind of noise."""
    figures = []
    for noise in dict.fromkeys(noise for by_noise in wer_by_snr.values() for noise in by_noise):
        # The noisiest on the right, as in Figure 2 of the paper.
        curves = {
            model: [(-snr, 100 * rate) for snr, rate in by_noise[noise]]
            for model, by_noise in wer_by_snr.items()
            if noise in by_noise
        }
        ticks = {place: f"{-place:g}" for points in curves.values() for place, _ in points}
        described = f"Word error rate in noise ({noise}), from little to much"
        xlabel = "speech over noise (dB)"
        chart = plot_curves(curves, "WER (%)", described, xlabel=xlabel, logarithmic=True, ticks=ticks)
        figures.append(figure(chart.svg(), f"Word error rate in noise: {noise}", "More noise to the right."))
    if figures:
        yield section("Noise", grid(*figures))


def training_section(log: Sequence[Mapping[str, Any]], *, several_sets: bool) -> Iterator[str]:
    """Yield losses and validation word error rates by step, from ``trainer.state.log_history``."""
    losses = read_curves(log, r"(?!eval_|train_)(?:(\w+)_)?loss", _LOSSES)
    rates = read_curves(log, r"eval_(?:(.+)_)?wer", {"": "average" if several_sets else "WER"})
    figures = []
    if losses:
        svg = plot_curves(losses, "loss", "Training loss by step", logarithmic=True).svg()
        figures.append(figure(svg, "Training loss", "The terms as logged, before they are weighted into the total."))
    if rates:
        svg = plot_curves(rates, "WER (%)", "Validation WER by step, in percent", logarithmic=True).svg()
        figures.append(figure(svg, "Validation word error rate", "Logarithmic where it falls far."))
    if figures:
        yield section("Training", grid(*figures))


def filter_section(report: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what the filter kept, from `FilterReport.to_dict`."""
    if not report:
        return
    threshold, histogram = report["threshold"], report["histogram"]
    counts = ", ".join(f"{count:,}" for count in histogram["samples"])
    description = f"Histogram of the word error rates of the labels; samples in each bin: {counts}."
    chart = plot_label_histogram(histogram["upper_edges"], histogram["samples"], threshold, description)
    labels = figure(chart.svg(), "Word error rate of the labels", "Of samples that have both a label and a reference.")
    table = scroll_box(html_table(filter_rows(report)), "filter", "What the filter kept and dropped")
    yield section("Filter", grid(labels, table))


def examples_section(examples: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield transcripts, their differences from the reference marked."""
    cards = []
    for example in examples:
        reference = example["reference"]
        marked = {name: mark_words(reference, example[name]) for name in ("teacher", "student")}
        lines = {"reference": escape(reference), **marked}
        words = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in lines.items())
        cards.append(
            f'<div class="card"><p class="set">{escape(example["set"])}</p><dl class="words">{words}</dl></div>'
        )
    if cards:
        yield section("Examples", f'<p class="note">{LEGEND}</p>', *cards)


def data_section(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the table of the data sets."""
    if rows:
        yield section("Data", scroll_box(html_table(rows), "data", "Data sets"))


def filter_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table from `FilterReport.to_dict`."""
    tallies = {"kept": report["kept"]}
    for reason, tally in report["reasons"].items():
        cause = f"WER above {100 * report['threshold']:g} %" if reason == "wer" else reason.replace("_", " ")
        if tally["samples"]:
            tallies[f"dropped: {cause}"] = tally
    tallies["all"] = report["total"]
    rows = [["labels", "samples", "share (%)", "hours"]]
    for name, tally in tallies.items():
        share = tally["samples"] / max(report["total"]["samples"], 1)
        rows.append([name, f"{tally['samples']:,}", percent(share), f"{tally['hours']:,.2f}"])
    return rows


def percent(rate: float | None) -> str:
    """Return a fraction as a percentage with one digit, or a dash for None."""
    return "-" if rate is None else f"{100 * rate:.1f}"


def describe_dataset(name: str, rows: Any, *, text_column: str = "text", **facts: Any) -> dict[str, Any]:
    """Return what a data set holds, for its card: samples, hours, words, speakers, as far as its columns tell.

    Args:
        name: What it is called.
        rows: The ``Dataset``, with lengths in ``duration_s`` and speakers in ``speaker_id``, if at all.
        text_column: Column of the transcripts.
        **facts: More to say: its source, its licence, what it is used for.
    """
    columns = rows.column_names
    card: dict[str, Any] = {"data set": name, "samples": len(rows)}
    if "duration_s" in columns:
        card["hours"] = sum(rows["duration_s"]) / 3600
    if text_column in columns:
        card["words"] = sum(len((text or "").split()) for text in rows[text_column])
    if "speaker_id" in columns:
        card["speakers"] = len(set(rows["speaker_id"]))
    return card | facts


def example_in_markdown(example: Mapping[str, str]) -> str:
    """Return the transcripts of an example as a list, their differences from the reference marked."""
    lines = [f"- {escape_markdown(example['set'])}: {escape_markdown(example['reference'])}"]
    lines += [
        f"  - {name}: {mark_words_in_markdown(example['reference'], example[name])}" for name in ("teacher", "student")
    ]
    return "\n".join(lines)


def data_rows(cards: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of a table of data sets; what one of them does not say is a dash."""
    facts = list(dict.fromkeys(fact for card in cards for fact in card))
    return [facts, *([_show(card.get(fact, "-")) for fact in facts] for card in cards)] if cards else []


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:,.3g}" if isinstance(value, float) else str(value)
