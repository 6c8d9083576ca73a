"""What a plan says, against the cost model and the paper's sizes."""

import json
from dataclasses import replace

import pytest
import torch

from distilwhisper.cli import main
from distilwhisper.costs import WhisperShape, step_cost
from distilwhisper.planning import measure_bandwidth, measure_flops, plan_distillation

LARGE = WhisperShape(1_280, 32, 32, 5_120, 5_120, 51_866, 128)
SMALL = replace(LARGE, decoder_layers=2)
SETTINGS = {"hours": 1_000.0, "steps": 10_000, "batch_size": 256, "flops_per_s": 3e14}


def test_stages_follow_from_the_cost_model():
    plan = plan_distillation(LARGE, SMALL, **SETTINGS, tokens=80)
    stages = {stage.name: stage for stage in plan.stages}
    assert plan.windows == 120_000
    cost = step_cost(SMALL, LARGE, batch_size=256, tokens=80)
    assert stages["training"].flops == 10_000 * cost.total
    assert stages["training"].hours == pytest.approx(10_000 * cost.total / 3e14 / 3600)
    assert stages["training from caches"].hours < stages["training"].hours / 10
    assert stages["training from caches"].memory_gib < stages["training"].memory_gib
    # 3.84 MB of encoder output and 2,560 bytes a token, for each window
    cached = stages["labels with caches"].disk_gib - stages["labels"].disk_gib
    assert cached * 2**30 == pytest.approx(120_000 * (1_500 * 1_280 * 2 + 80 * 2_560))


def test_twice_the_audio_costs_twice_the_labels_and_the_same_training():
    once, twice = (plan_distillation(LARGE, SMALL, **{**SETTINGS, "hours": hours}) for hours in (100.0, 200.0))
    assert twice.stages[0].flops == 2 * once.stages[0].flops
    assert twice.stages[-1].flops == once.stages[-1].flops


def test_decoding_reads_all_weights_for_each_token_and_batch():
    free = plan_distillation(LARGE, SMALL, **SETTINGS)
    alone, shared = (plan_distillation(LARGE, SMALL, **SETTINGS, bytes_per_s=2e12, label_batch_size=n) for n in (1, 64))
    weights = 120_000 * 80 * 2 * LARGE.decoder_parameters
    assert alone.stages[0].flops == free.stages[0].flops
    longer = 3600 * (alone.stages[0].hours - shared.stages[0].hours)
    assert longer == pytest.approx((weights - weights / 64) / 2e12)
    assert alone.stages[2].hours == free.stages[2].hours
    # Keys and values of 63 more samples: 32 layers, 1,580 positions, 16 bit.
    more = 2**30 * (shared.stages[0].memory_gib - alone.stages[0].memory_gib)
    assert more == pytest.approx(63 * 32 * 2 * 1_580 * 1_280 * 2)


def test_a_plan_says_how_large_the_models_are():
    parameters = plan_distillation(LARGE, SMALL, **SETTINGS).parameters
    assert parameters == pytest.approx({"teacher": 1543.5, "student": 756.4, "trained": 119.4}, abs=1)


@pytest.mark.parametrize("name", ["hours", "steps", "batch_size", "flops_per_s", "label_batch_size", "bytes_per_s"])
def test_what_is_not_positive_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, not 0"):
        plan_distillation(LARGE, SMALL, **{**SETTINGS, name: 0})


def test_speed_of_this_machine_is_that_of_a_product_of_matrices(monkeypatch):
    monkeypatch.setattr("distilwhisper.planning.MEASURED_S", 0.05)
    assert 1e8 < measure_flops("cpu", torch.float32) < 1e15
    assert 1e7 < measure_bandwidth("cpu") < 1e14


def test_command_prints_a_table_or_json(capsys):
    flags = ["plan", "--teacher", "examples/teacher", "--hours", "10", "--flops_per_s", "1e11", "--dtype", "float32"]
    assert main(flags) == 0
    table = capsys.readouterr().out
    assert "training from caches" in table
    assert main([*flags, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["flops_per_s"], plan["bytes_per_s"]) == (1e11, None)
    assert main([*flags, "--json", "--devices", "8", "--bytes_per_s", "1e10"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["flops_per_s"], plan["bytes_per_s"]) == (8e11, 8e10)
    assert len(plan["stages"]) == 4
