"""Retention: the rules of ``tf.train.Saver``, with the Saver itself as the oracle."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from jaxmeta import errors
from jaxmeta.checkpoint import Retention

HOUR = 3600.0


def test_the_oldest_falls_out() -> None:
    retention = Retention(max_to_keep=3, start_time=0.0)
    removed = [retention.record(f"m-{step}", made=float(step)) for step in range(5)]
    assert removed == [None, None, None, "m-0", "m-1"]
    assert retention.last_checkpoints == ["m-2", "m-3", "m-4"]
    assert retention.last_checkpoints_with_time == [("m-2", 2.0), ("m-3", 3.0), ("m-4", 4.0)]


def test_saving_again_moves_to_the_end() -> None:
    retention = Retention(max_to_keep=2, start_time=0.0)
    removed = [retention.record(name, made=0.0) for name in ["a", "b", "a", "c"]]
    assert removed == [None, None, None, "b"]
    assert retention.last_checkpoints == ["a", "c"]


@pytest.mark.parametrize("max_to_keep", [None, 0])
def test_all_are_kept_and_none_is_listed_without_a_limit(max_to_keep: int | None) -> None:
    retention = Retention(max_to_keep, start_time=0.0)
    assert [retention.record(f"m-{step}", made=0.0) for step in range(9)] == [None] * 9
    assert retention.last_checkpoints == []


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(errors.CheckpointError, match="max_to_keep is -1"):
        Retention(-1)


def test_one_in_each_period_is_kept_for_good() -> None:
    retention = Retention(1, keep_checkpoint_every_n_hours=2, start_time=0.0)
    hours = [0.5, 1.5, 2.0, 2.5, 3.5, 4.5, 9.0]
    removed = [retention.record(f"m-{hour}", made=hour * HOUR) for hour in hours]
    assert removed == [None, "m-0.5", "m-1.5", "m-2.0", None, "m-3.5", None]
    assert retention.next_checkpoint_time == 6 * HOUR


def test_checkpoints_of_unknown_age_count_as_new() -> None:
    retention = Retention(1, keep_checkpoint_every_n_hours=2, start_time=0.0)
    retention.set_last_checkpoints(["a", "b"])
    assert retention.last_checkpoints == ["a", "b"]
    assert retention.record("c", made=0.0) is None
    assert retention.next_checkpoint_time == 4 * HOUR


def test_a_list_that_is_too_long_shrinks_by_one_at_a_time() -> None:
    retention = Retention(1, start_time=0.0)
    retention.set_last_checkpoints_with_time([("a", 1.0), ("b", 2.0), ("c", 3.0)])
    assert [retention.record(name, made=9.0) for name in "de"] == ["a", "b"]


def test_recovery_lists_what_still_exists() -> None:
    retention = Retention(3, start_time=0.0)
    retention.recover_last_checkpoints("abc", {"a": 1.0, "c": 3.0}.get)
    assert retention.last_checkpoints_with_time == [("a", 1.0), ("c", 3.0)]


@pytest.mark.needs_tf
@pytest.mark.parametrize("seed", range(4))
def test_random_histories_end_as_with_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1
    from tensorflow.python.training import saver as saver_module  # where it looks at the clock

    rng = random.Random(seed)
    now = [1000.0]
    monkeypatch.setattr(saver_module.time, "time", lambda: now[0])
    limit, hours = rng.choice([1, 2, 3]), rng.choice([0.5, 2.0, 10000.0])
    kept: set[str] = set()
    with tf.Graph().as_default(), tf.Session() as session:
        variable = tf.Variable(1.0, name="x")
        session.run(variable.initializer)
        saver = tf.train.Saver(max_to_keep=limit, keep_checkpoint_every_n_hours=hours)
        retention = Retention(limit, hours, start_time=now[0])
        for _ in range(25):
            now[0] += rng.random() * HOUR
            step = rng.randrange(12)
            prefix = saver.save(session, str(tmp_path / "m"), step, write_meta_graph=False)
            kept = (kept | {prefix}) - {retention.record(prefix, made=now[0])}
            assert retention.last_checkpoints == saver.last_checkpoints
            assert retention.next_checkpoint_time == saver._next_checkpoint_time
            assert kept == {str(path.with_suffix("")) for path in tmp_path.glob("*.index")}
            if rng.random() < 0.1:
                reset(saver, retention, rng.choice(["names", "times", "recover"]))


def reset(saver: Any, retention: Retention, how: str) -> None:
    prefixes = saver.last_checkpoints
    if how == "names":
        saver.set_last_checkpoints(prefixes)
        retention.set_last_checkpoints(prefixes)
    elif how == "times":
        pairs = [(prefix, float(number)) for number, prefix in enumerate(prefixes)]
        saver.set_last_checkpoints_with_time(list(pairs))
        retention.set_last_checkpoints_with_time(pairs)
    else:
        saver.recover_last_checkpoints([*prefixes, "gone"])
        times = {prefix: os.stat(f"{prefix}.index").st_mtime_ns / 1e9 for prefix in prefixes}
        retention.recover_last_checkpoints([*prefixes, "gone"], times.get)
