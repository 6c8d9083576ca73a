import json

import pytest

from distilwhisper.stages import Stages


@pytest.fixture
def made():
    return []


def maker(made, name, fail=False):
    def make(folder):
        made.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"part-{len(list(folder.iterdir()))}").touch()
        if fail:
            raise KeyboardInterrupt

    return make


def run_both(directory, made, **settings):
    stages = Stages(directory)
    stages.run("data", maker(made, "data"), size=settings.get("size", 3))
    stages.run("other", maker(made, "other"))
    return stages.run("model", maker(made, "model"), after=["data"], steps=settings.get("steps", 5))


def test_a_stage_is_made_once_for_its_settings_and_those_of_the_stages_that_it_needs(tmp_path, made):
    run_both(tmp_path, made)
    run_both(tmp_path, made)
    assert made == ["data", "other", "model"]
    run_both(tmp_path, made, steps=6)
    assert made[3:] == ["model"]
    run_both(tmp_path, made, steps=6, size=4)
    assert made[4:] == ["data", "model"]


@pytest.mark.parametrize(("resumes", "parts"), [(False, 1), (True, 2)])
def test_a_stage_that_was_killed_begins_anew_or_goes_on(tmp_path, made, resumes, parts):
    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path).run("train", maker(made, "train", fail=True), resumes=resumes, steps=2)
    folder = Stages(tmp_path).run("train", maker(made, "train"), resumes=resumes, steps=2)
    assert len(list(folder.iterdir())) == parts
    Stages(tmp_path).run("train", maker(made, "train"), resumes=resumes, steps=2)
    assert made == ["train", "train"]


def test_what_other_settings_left_unfinished_is_not_resumed(tmp_path, made):
    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path).run("train", maker(made, "train", fail=True), resumes=True, steps=2)
    folder = Stages(tmp_path).run("train", maker(made, "train"), resumes=True, steps=3)
    assert len(list(folder.iterdir())) == 1


def test_stages_are_announced_and_timed(tmp_path, made):
    announced = []
    stages = Stages(tmp_path, announced.append)
    stages.run("data", maker(made, "data"))
    assert announced == ["data"]
    seconds = json.loads((tmp_path / "data.json").read_text())["seconds"]
    again = Stages(tmp_path, announced.append)
    again.run("data", maker(made, "data"))
    assert announced == ["data"]
    assert again.seconds == {"data": seconds}


def test_a_stage_that_is_needed_must_have_run(tmp_path, made):
    with pytest.raises(KeyError, match="labels"):
        Stages(tmp_path).run("model", maker(made, "model"), after=["labels"])
