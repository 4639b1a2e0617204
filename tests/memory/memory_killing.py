"""Children that are killed: before every statement that they send to their database."""

from __future__ import annotations

import itertools
import os
import signal
import traceback
from collections.abc import Callable

import sqlalchemy as sa

from nbmf_research.memory.records import Record, synthetic_records
from nbmf_research.memory.training import Released, Training, train_model


def small_model() -> Released:
    """A model of made-up records, which takes a moment."""
    records: dict[str, list[Record]] = {}
    for r in synthetic_records(60, seed=8):
        records.setdefault(r.source, []).append(r)
    return Released(train_model(records, Training(6000, 4000, 12, 12)), b"8 bytes.")


def dies(work: Callable[[], object], k: int) -> bool:
    """Run `work` in a child that kills itself before its k-th statement or commit; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            numbers = itertools.count(1)

            def before(*_: object) -> None:
                if next(numbers) == k:
                    os.kill(os.getpid(), signal.SIGKILL)

            for name in ("before_cursor_execute", "commit"):
                sa.event.listen(sa.Engine, name, before)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WIFSIGNALED(status)


def check_every_kill(work: Callable[[], object], whole: Callable[[bool], None], step: int = 1, most: int = 400) -> int:
    """Kill `work` before each statement, checking after each kill, until it ends by itself; return the number of kills."""
    for kills, k in enumerate(range(1, most, step)):
        killed = dies(work, k)
        whole(killed)
        if not killed:
            return kills
    raise AssertionError(f"it was killed {most} times and never ended")
