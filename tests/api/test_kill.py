"""kill -9 of the service under load. The full run is `python -m benchmarks.kill9`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.kill9 import one_round, prepare


def test_after_kill_9_all_that_was_answered_is_in_the_ledger_once_and_all_that_was_deployed_is_back(tmp_path: Path) -> None:
    key, models = prepare(tmp_path)
    for seed in (1, 2, 3):
        seen = one_round(tmp_path, key, models, seconds=1.5, seed=seed * 1000)
        assert len(seen.answered) > 20
        assert seen.missing == 0, f"{seen.missing} of {len(seen.answered)} answers are not in the ledger"
        assert seen.twice == 0
        assert seen.rows >= len(seen.answered)
        assert seen.back == models
