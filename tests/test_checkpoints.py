import json

from distilwhisper import last_checkpoint


def write(folder, step, state=None):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    if state is not None:
        (checkpoint / "trainer_state.json").write_text(state)
    return str(checkpoint)


def test_newest_complete_checkpoint_is_found_among_broken_ones(tmp_path):
    write(tmp_path, 9, json.dumps({"global_step": 9}))
    complete = write(tmp_path, 10, json.dumps({"global_step": 10}))
    write(tmp_path, 11)
    write(tmp_path, 12, json.dumps({"global_step": 12})[:-4])
    write(tmp_path, 13, json.dumps({"global_step": 10}))
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == complete


def test_without_a_complete_checkpoint_there_is_none(tmp_path):
    assert last_checkpoint(tmp_path / "missing") is None
    write(tmp_path, 3)
    assert last_checkpoint(tmp_path) is None
