"""The training loop: resume to the bit, in one process and in two; averages, schedules, limits, errors, configuration files."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from nbmf_research import training as T
from nbmf_research.checkpoints import load_tensors, newest, numbered, tensor_hash
from nbmf_research.core import InputError, MissingDependencyError, StreamError, seed_everything


class Line:
    """A regression with dropout and batch norm, so that random state and buffers matter."""

    def __init__(self, width: int = 8, stop_at: int = -1) -> None:
        self.module: nn.Module = nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 1)
        )
        self.stop_at = stop_at
        self.values = itertools.count()

    def batches(self, start: int, shard: T.Shard) -> Iterator[Any]:
        for i in shard.indices(start):
            g = torch.Generator().manual_seed(i % 7)  # an epoch of seven batches
            x = torch.randn(16, 4, generator=g)
            yield {"x": x, "y": x.sum(1, keepdim=True) + 0.1 * torch.randn(16, 1, generator=g)}

    def loss(self, module: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        if step == self.stop_at:
            self.stop_at = -1
            signal.raise_signal(signal.SIGINT)
        error = (module(batch["x"]) - batch["y"]).square().mean()
        return {"loss": error * (1 + 0.01 * step), "error": error}

    def validate(self, module: nn.Module, shard: T.Shard) -> dict[str, float]:
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(99))
        return {"error": float((module(x) - x.sum(1, keepdim=True)).square().mean()), "rank": float(shard.rank)}


def config(folder: Path, **changes: Any) -> T.TrainConfig:
    base = T.TrainConfig(
        str(folder),
        steps=24,
        device="cpu",
        ema=0.9,
        optimizer=T.OptimizerConfig(learning_rate=1e-2, accumulate=2),
        schedule=T.ScheduleConfig(warmup=4),
        validation=T.ValidationConfig(every=5, metric="error"),
        checkpoint=T.CheckpointConfig(every=10),
        log=T.LogConfig(every=4, progress=False),
    )
    return dataclasses.replace(base, **changes)


def made(stop_at: int = -1, **options: Any) -> Line:
    seed_everything(0)
    return Line(stop_at=stop_at, **options)


# Resume ------------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "average, accumulation, cosine": {},
    "plateau, no average": {
        "ema": 0.0,
        "schedule": T.ScheduleConfig("plateau", patience=1),
        "validation": T.ValidationConfig(every=3, metric="rank"),
    },
    "bf16, recompute": {"precision": "bf16", "recompute": ("0", "4"), "optimizer": T.OptimizerConfig()},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("stops", [(0,), (9,), (13, 14), (2, 11, 22)])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, setting: str, stops: tuple[int, ...]) -> None:
    whole = T.fit(made(), config(tmp_path / "whole", **SETTINGS[setting]))
    c = config(tmp_path / "parts", **SETTINGS[setting])
    for at in stops:
        with pytest.raises(KeyboardInterrupt, match=f"stopped at step {at + 1} of 24"):
            T.fit(made(at), c)
        seed_everything(1000 + at)  # nothing may hang on the state that the next process begins with
    parts = T.fit(Line(), c)
    assert dataclasses.replace(parts, folder=whole.folder) == whole
    for name in ("last.safetensors", "best.safetensors"):
        a, b = (load_tensors(tmp_path / run / name)[0] for run in ("whole", "parts"))
        assert tensor_hash(a) == tensor_hash(b)
    a, b = (load_tensors(newest(tmp_path / run))[0] for run in ("whole", "parts"))  # type: ignore[arg-type]
    assert tensor_hash(a) == tensor_hash(b)
    steps = [[line["step"] for line in T.read_log(tmp_path / run / "log.jsonl")] for run in ("whole", "parts")]
    assert steps[0] == steps[1]


def test_the_same_settings_give_the_same_weights_and_another_seed_does_not(tmp_path: Path) -> None:
    first = T.fit(made(), config(tmp_path / "a"))
    assert T.fit(made(), config(tmp_path / "b")).sha256 == first.sha256
    assert T.fit(made(), config(tmp_path / "c", seed=1)).sha256 != first.sha256


def test_validation_logging_and_saving_do_not_change_the_weights(tmp_path: Path) -> None:
    often = config(
        tmp_path / "a",
        validation=T.ValidationConfig(every=1, metric="error"),
        log=T.LogConfig(1, progress=False),
        checkpoint=T.CheckpointConfig(every=1),
    )
    never = config(tmp_path / "b", validation=T.ValidationConfig(), checkpoint=T.CheckpointConfig(every=0))
    assert T.fit(made(), often).sha256 == T.fit(made(), never).sha256


def test_the_number_of_threads_is_part_of_a_run(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    one = T.fit(made(), config(tmp_path / "one", threads=1))
    try:
        torch.set_num_threads(2)
        assert T.fit(made(), config(tmp_path / "again", threads=1)).sha256 == one.sha256
        assert torch.get_num_threads() == 2  # as it was
        with pytest.raises(InputError, match="threads: 1 there, 2 now"):
            T.fit(made(), config(tmp_path / "one"))
    finally:
        torch.set_num_threads(before)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_training import T, config, made
task = made()
loss = task.loss
def deadly(module, batch, step):
    if step == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(module, batch, step)
task.loss = deadly
T.fit(task, config(Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_kill_minus_nine_costs_only_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    whole = T.fit(made(), config(tmp_path / "whole"))
    run = subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "killed"), "17"])
    assert run.returncode == -signal.SIGKILL
    assert newest(tmp_path / "killed") == tmp_path / "killed" / "step-000000010.safetensors"
    assert T.fit(Line(), config(tmp_path / "killed")).sha256 == whole.sha256


TWO = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_training import T, config, made
folder, stop = Path(sys.argv[2]), int(sys.argv[3])
changes = {"optimizer": T.OptimizerConfig(learning_rate=1e-2)} if len(sys.argv) > 4 else {}
try:
    r = T.fit(made(stop), config(folder, **changes))
    assert r.metrics["rank"] == 0.5, r.metrics
    interrupted = False
except KeyboardInterrupt:
    interrupted = True
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # its threads must not outlive the interpreter
sys.exit(0 if interrupted == (stop >= 0) else 1)
"""


def two(folder: Path, stop: int = -1, *flags: str) -> None:
    """Run two processes that train together (gloo)."""
    script = folder.parent / "two.py"
    script.write_text(TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [str(Path(__file__).parent), str(folder), str(stop), *flags]
    run = subprocess.run([*launch, *arguments], env=env, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits(tmp_path: Path) -> None:
    two(tmp_path / "whole")
    two(tmp_path / "parts", 12)
    assert newest(tmp_path / "parts") == tmp_path / "parts" / "step-000000013.safetensors"
    two(tmp_path / "parts")
    whole, parts = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("whole", "parts"))
    assert whole["sha256"] == parts["sha256"] and whole["step"] == parts["step"] == 24
    with pytest.raises(InputError, match="processes: 2 there, 1 now"):
        T.fit(made(), config(tmp_path / "whole"))


class Plain(Line):
    """Without what depends on the size of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def test_accumulated_batches_equal_a_larger_batch(tmp_path: Path) -> None:
    class Large(Plain):
        def batches(self, start: int, shard: T.Shard) -> Iterator[Any]:
            small = super().batches(2 * start, shard)
            for a, b in zip(small, small):
                yield {k: torch.cat([a[k], b[k]]) for k in a}

    ends = []
    for task, n in ((Plain, 2), (Large, 1)):
        seed_everything(0)
        toy = task()
        T.fit(toy, config(tmp_path / task.__name__, optimizer=T.OptimizerConfig(accumulate=n), ema=0.0))
        ends.append(torch.cat([p.flatten() for p in toy.module.parameters()]))
    assert torch.allclose(*ends, atol=1e-6)


# Settings that matter, settings that do not ------------------------------------------------------------------------


def test_resume_refuses_other_settings_unless_forced(tmp_path: Path) -> None:
    c = config(tmp_path / "run")
    T.fit(made(), c)
    with pytest.raises(InputError, match=r"optimizer\.clip: 1\.0 there, 2\.0 now.*checkpoint\.resume=force"):
        T.fit(made(), dataclasses.replace(c, optimizer=dataclasses.replace(c.optimizer, clip=2.0)))
    with pytest.raises(InputError, match=r"about\.width: None there, 9 now"):
        T.fit(made(), c, {"width": 9})
    more = dataclasses.replace(c, steps=30, checkpoint=T.CheckpointConfig(resume="force"))
    assert T.fit(made(), more).step == 30
    with pytest.raises(InputError, match="holds a run already"):
        T.fit(made(), dataclasses.replace(c, checkpoint=T.CheckpointConfig(resume="never")))


def test_logging_may_change_and_a_constant_schedule_may_go_on(tmp_path: Path) -> None:
    constant = {"schedule": T.ScheduleConfig("constant")}
    long = T.fit(made(), config(tmp_path / "long", steps=30, **constant))
    T.fit(made(), config(tmp_path / "short", **constant))
    more = config(tmp_path / "short", steps=30, log=T.LogConfig(1, progress=False), **constant)
    assert T.fit(made(), more).sha256 == long.sha256


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    T.fit(made(), config(tmp_path / "run"))
    with pytest.raises(InputError, match="belongs to another model"):
        T.fit(made(width=9), config(tmp_path / "run"))


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    T.fit(made(), config(tmp_path / "run"))
    path = newest(tmp_path / "run")
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data[:-50] if damage == "cut" else data)
    with pytest.raises(StreamError, match=path.name):
        T.fit(made(), config(tmp_path / "run"))


def test_a_finished_run_is_not_trained_again_and_old_checkpoints_go(tmp_path: Path) -> None:
    first = T.fit(made(), config(tmp_path / "run", checkpoint=T.CheckpointConfig(every=2, keep=3)))
    assert [int(p.stem[5:]) for p in numbered(tmp_path / "run")] == [20, 22, 24]
    assert T.fit(made(stop_at=23), config(tmp_path / "run")) == first
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == dataclasses.asdict(first)


# Pieces ------------------------------------------------------------------------------------------------------------


def test_schedules() -> None:
    cosine = T.TrainConfig("r", steps=100, schedule=T.ScheduleConfig(warmup=10, floor=0.1))
    rates = [T.learning_rate(cosine, i) for i in range(100)]
    assert rates[:10] == pytest.approx([1e-4 * (i + 1) for i in range(10)])
    assert max(rates) == rates[10] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-4)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    middle = 10 + 89 // 2
    assert rates[middle] == pytest.approx(1e-3 * (0.1 + 0.45 * (1 + math.cos(math.pi * (middle - 10) / 89))))
    constant = dataclasses.replace(cosine, schedule=T.ScheduleConfig("constant"))
    assert {T.learning_rate(constant, i) for i in (0, 50, 99)} == {1e-3}


def test_plateau_lowers_the_rate_and_stops_at_the_floor(tmp_path: Path) -> None:
    c = config(
        tmp_path / "run",
        schedule=T.ScheduleConfig("plateau", patience=1, factor=0.5, floor=0.2),
        validation=T.ValidationConfig(every=2, metric="rank"),
    )
    T.fit(made(), c)
    rates = [line["learning_rate"] for line in T.read_log(tmp_path / "run" / "log.jsonl") if "learning_rate" in line]
    assert rates[0] == 1e-2 and rates[-1] == pytest.approx(2e-3) and 2.5e-3 in rates


@pytest.mark.parametrize("mode", ["min", "max"])
def test_early_stopping_counts_validations_without_improvement(tmp_path: Path, mode: Any) -> None:
    class Scripted(Line):
        def validate(self, module: nn.Module, shard: T.Shard) -> dict[str, float]:
            values = [3.0, 1.0, 1.0, 0.999, math.nan, 0.5]
            return {"m": (1 if mode == "min" else -1) * values[next(self.values)]}

    v = T.ValidationConfig(every=2, metric="m", mode=mode, patience=3, min_delta=0.01)
    result = T.fit(Scripted(), config(tmp_path / "run", validation=v))
    assert (result.reason, result.step, result.best_step) == ("early", 10, 4) and abs(result.best or 0) == 1.0
    assert load_tensors(tmp_path / "run" / "best.safetensors")[1]["step"] == 4
    again = T.fit(made(stop_at=10), config(tmp_path / "run", validation=v))
    assert again.step == 10 and again.reason == "early"
    assert [line["validation/m"] for line in T.read_log(tmp_path / "run" / "log.jsonl") if "validation/m" in line][
        -1
    ] is None


def test_the_average_is_what_is_delivered(tmp_path: Path) -> None:
    toy = made()
    average = T.WeightAverage(toy.module, 0.9)
    result = T.fit(toy, config(tmp_path / "run"))
    last, _ = load_tensors(tmp_path / "run" / "last.safetensors")
    assert tensor_hash(last) == result.sha256 != tensor_hash(toy.module.state_dict())
    with average.applied(toy.module):
        assert tensor_hash(toy.module.state_dict()) == tensor_hash(average.weights)
    plain = T.fit(made(), config(tmp_path / "plain", ema=0.0))
    assert tensor_hash(toy.module.state_dict()) == plain.sha256


def test_the_average_against_its_formula() -> None:
    toy = made().module
    average = T.WeightAverage(toy, 0.5)
    expected = toy.state_dict()["0.weight"].clone().double()
    for n in range(1, 8):
        with torch.no_grad():
            toy[0].weight.add_(1.0)  # type: ignore[index]
            toy[1].running_mean.add_(1.0)  # type: ignore[index]
        average.update(toy, n)
        keep = min(0.5, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * toy.state_dict()["0.weight"]
    assert torch.allclose(average.weights["0.weight"].double(), expected, atol=1e-5)
    assert torch.equal(average.weights["1.running_mean"], toy.state_dict()["1.running_mean"])


def test_clipping_bounds_the_gradient_and_the_norm_is_logged(tmp_path: Path) -> None:
    seen: list[float] = []

    class Watched(Plain):
        def batches(self, start: int, shard: T.Shard) -> Iterator[Any]:
            for batch in super().batches(start, shard):
                grads = [p.grad for p in self.module.parameters() if p.grad is not None]
                seen.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))
                yield batch

    tight = T.OptimizerConfig(clip=1e-3)
    toy = Watched()
    trainer = T.Trainer(toy, config(tmp_path / "run", optimizer=tight, steps=3, log=T.LogConfig(1, progress=False)))
    step = trainer.optimizer.step
    norms: list[float] = []

    def watch() -> None:
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in toy.module.parameters())))  # type: ignore[union-attr]
        step()

    trainer.optimizer.step = watch
    trainer.run()
    assert all(n <= 1.0001e-3 for n in norms) and len(norms) == 3
    assert all(x["grad_norm"] > 0.1 for x in T.read_log(tmp_path / "run" / "log.jsonl") if "grad_norm" in x)
    assert set(seen) == {0.0}, "gradients are cleared before the next batch"


def test_weight_decay_spares_vectors() -> None:
    module = made().module
    optimizer, names = T.make_optimizer(module, T.OptimizerConfig(weight_decay=0.3))
    groups = {g["weight_decay"]: len(g["params"]) for g in optimizer.param_groups}
    assert groups == {0.3: 2, 0.0: 4} and names[:2] == ["0.weight", "4.weight"]
    module.requires_grad_(False)
    with pytest.raises(InputError, match="no parameters to train"):
        T.make_optimizer(module, T.OptimizerConfig())


def test_recompute_gives_the_same_gradients_and_refuses_unknown_names() -> None:
    grads = []
    for patterns in ((), ("*",)):
        module = made().module
        found = T.recompute(module, patterns)
        assert T.recompute(module, patterns) == found and len(found) == 5 * len(patterns)
        torch.manual_seed(3)
        module(torch.randn(16, 4, requires_grad=True)).sum().backward()
        grads.append({k: p.grad for k, p in module.named_parameters() if p.grad is not None})
    assert tensor_hash(grads[0]) == tensor_hash(grads[1])
    with pytest.raises(InputError, match="no submodule is called 'layers"):
        T.recompute(made().module, ["layers.*"])


def test_device_moves_reach_into_named_tuples() -> None:
    from nbmf_research.loading import Windows

    batch = Windows(*(torch.zeros(2) for _ in range(4)))
    assert isinstance(T.to_device([batch], "meta")[0], Windows)
    assert T.to_device([batch], "meta")[0].x.device.type == "meta"


# Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "message"),
    [("loss", "step 5, .*loss is nan.* in batch 11"), ("gradient", "gradient of 0.weight.* in batches 10 to 11")],
)
def test_what_is_not_finite_stops_the_run_before_the_weights_change(tmp_path: Path, where: str, message: str) -> None:
    class Broken(Plain):
        def loss(self, module: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
            terms = super().loss(module, batch, step)
            nth = next(self.values)
            if nth == 11 and where == "loss":
                terms["loss"] = terms["loss"] * math.nan
            if nth == 11 and where == "gradient":
                zero = (module[0].weight * 0).abs().sum()  # type: ignore[index]
                terms["loss"] = terms["loss"] + zero.sqrt()
            return terms

    toy = Broken()
    with pytest.raises(T.TrainingError, match=message):
        T.fit(toy, config(tmp_path / "run"))
    assert all(p.isfinite().all() for p in toy.module.parameters())


def test_batches_that_end_and_losses_without_a_loss(tmp_path: Path) -> None:
    class Short(Line):
        def batches(self, start: int, shard: T.Shard) -> Iterator[Any]:
            return itertools.islice(super().batches(start, shard), 5)

    class Nameless(Line):
        def loss(self, module: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
            return {"mse": torch.zeros(())}

    with pytest.raises(T.TrainingError, match="ended at batch 5"):
        T.fit(Short(), config(tmp_path / "a"))
    with pytest.raises(InputError, match=r"scalar called 'loss'; it returned \['mse'\]"):
        T.fit(Nameless(), config(tmp_path / "b"))
    with pytest.raises(InputError, match=r"metric is .snr., .* error, rank"):
        T.fit(made(), config(tmp_path / "c", validation=T.ValidationConfig(every=2, metric="snr")))
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        T.fit(made(), config(tmp_path / "d", precision="fp16"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: T.TrainConfig("", steps=3),
        lambda: T.TrainConfig("r", steps=0),
        lambda: T.TrainConfig("r", ema=1.0),
        lambda: T.TrainConfig("r", schedule=T.ScheduleConfig("plateau")),
        lambda: T.OptimizerConfig(learning_rate=math.nan),
        lambda: T.OptimizerConfig(accumulate=0),
        lambda: T.ScheduleConfig(factor=1.5),
        lambda: T.ValidationConfig(patience=2),
        lambda: T.CheckpointConfig(keep=0),
        lambda: T.LogConfig(every=0),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()


def test_signals_are_handled_as_before_when_training_is_over(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), torch.are_deterministic_algorithms_enabled()
    T.fit(made(), config(tmp_path / "run", steps=2))
    assert (signal.getsignal(signal.SIGINT), torch.are_deterministic_algorithms_enabled()) == before


# Logs and trackers -------------------------------------------------------------------------------------------------


def test_the_log_holds_means_and_no_tracker_runs_by_default(tmp_path: Path) -> None:
    T.fit(made(), config(tmp_path / "each", log=T.LogConfig(1, progress=False), validation=T.ValidationConfig()))
    T.fit(made(), config(tmp_path / "four", validation=T.ValidationConfig()))
    each, four = (T.read_log(tmp_path / run / "log.jsonl") for run in ("each", "four"))
    assert len(each) == 24 and [line["step"] for line in four] == [4, 8, 12, 16, 20, 24]
    for i, line in enumerate(four):
        for key in ("loss", "error", "grad_norm"):
            assert line[key] == pytest.approx(sum(x[key] for x in each[4 * i : 4 * i + 4]) / 4, rel=1e-5)
    names = {p.name.split("-")[0] for p in (tmp_path / "four").iterdir()}
    assert names == {"last.safetensors", "log.jsonl", "result.json", "step"}


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    T.fit(made(), config(tmp_path / "run", log=T.LogConfig(4, "tensorboard", progress=False)))
    events = EventAccumulator(str(tmp_path / "run" / "tracker"))
    events.Reload()
    logged = [x["loss"] for x in T.read_log(tmp_path / "run" / "log.jsonl") if "loss" in x]
    assert [s.value for s in events.Scalars("loss")] == pytest.approx(logged)
    assert "validation/error" in events.Tags()["scalars"]


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_missing_tracker_says_what_to_install(tmp_path: Path, tracker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {tracker}"):
        T.fit(made(), config(tmp_path / "run", log=T.LogConfig(tracker=tracker)))


def test_missing_accelerate_is_said_and_the_module_imports_without_it() -> None:
    code = """
        import sys
        for name in ("accelerate", "optuna", "tensorboard"):
            sys.modules[name] = None
        from nbmf_research import checkpoints, losses, loading, training
        from nbmf_research.core import MissingDependencyError
        try:
            training.Trainer(None, training.TrainConfig("run"))
        except MissingDependencyError as e:
            assert "nbmf_research[train]" in str(e)
            print("said")
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert run.stdout == "said\n", run.stderr


# Configuration files -----------------------------------------------------------------------------------------------

T.register_task("test.line")(Line)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Settings of a model."""

    width: int = 8
    """Hidden units."""


@T.register_task("test.made")
def make_line(shape: Shape = Shape(), stop_at: int = -1) -> Line:
    return Line(shape.width, stop_at)


def write(folder: Path, **values: Any) -> str:
    train = {"folder": str(folder / "run"), "steps": 6, "device": "cpu", "log": {"progress": False}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"task": "test.line", "train": train} | values))
    return str(path)


def test_a_file_and_overrides_make_a_run(tmp_path: Path) -> None:
    path = write(tmp_path, options={"width": 5})
    overrides = {
        "steps": "7",
        "train.optimizer.learning_rate": "1e-2",
        "schedule.kind": "constant",
        "options.width": "6",
    }
    folder = T.train(path, overrides)
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["options"] == {"width": 6, "stop_at": -1} and stored["train"]["optimizer"]["learning_rate"] == 0.01
    weights, about = load_tensors(folder / "last.safetensors")
    assert weights["0.weight"].shape == (6, 4) and about["settings"]["about"]["task"] == "test.line"
    assert T.train(str(folder / "config.yaml")) == folder


def test_the_stored_configuration_makes_the_same_weights_again(tmp_path: Path) -> None:
    folder = T.train(write(tmp_path))
    again = T.train(str(folder / "config.yaml"), {"folder": str(tmp_path / "again")})
    a, b = (json.loads((f / "result.json").read_text())["sha256"] for f in (folder, again))
    assert a == b


def test_functions_and_nested_options(tmp_path: Path) -> None:
    path = write(tmp_path, task="test.made", options={"shape": {"width": 3}})
    folder = T.train(
        path, {"options.shape.width": "4", "train.recompute": "['0']", "train.optimizer.betas": "[0.8, 0.9]"}
    )
    assert load_tensors(folder / "last.safetensors")[0]["0.weight"].shape == (4, 4)
    assert T.read_config(folder / "config.yaml").train.optimizer.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stepz": "3"}, "'train' does not accept option 'stepz'"),
        ({"optimizer.lr": "3"}, "does not accept option 'optimizer.lr'"),
        ({"steps": "three"}, "train.steps.*int.*three"),
        ({"steps": "0"}, "at least one step"),
        ({"schedule.kind": "linear"}, "train.schedule.kind.*linear"),
        ({"options.width": "1.5"}, "options.width"),
        ({"options.wdith": "2"}, "does not accept option 'wdith'"),
        ({"task": "test.lime"}, "did you mean 'test.line'"),
        ({"task": "no_such_package.tasks:thing"}, "no task is called 'thing'"),
        ({"steps.more": "1"}, "'steps' in 'steps.more' holds a value"),
    ],
)
def test_wrong_keys_and_values_are_named(tmp_path: Path, overrides: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        T.train(write(tmp_path), overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read as YAML"),
        ("just text", "must hold the keys task, options, train"),
        ("train: {folder: x}", "name the task"),
        ("task: test.line\ntrain: 3", "must hold the keys"),
        ("task: test.line", "train.folder"),
        ("task: test.line\ntrian: {}\ntrain: {folder: x}", "unknown key trian"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        T.read_config(tmp_path / "c.yaml")


def test_a_task_of_ones_own_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tasks.py").write_text(
        "from nbmf_research.training import register_task\n@register_task('mine')\ndef make(width: int = 3) -> None: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert T.find_task("own_tasks:mine").__name__ == "make"
    (tmp_path / "broken_tasks.py").write_text("import no_such_dependency_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        T.find_task("broken_tasks:mine2")


def test_the_smoke_configuration_is_valid_but_for_its_task() -> None:
    values = yaml.safe_load((Path(__file__).parent.parent / "nbs" / "configs" / "smoke.yaml").read_text())
    assert set(values) <= {"task", "options", "train"}
    Line_ = values | {"task": "test.line", "options": {}}
    assert T._parse(Line_, "smoke").train.steps <= 1000


# Sweeps ------------------------------------------------------------------------------------------------------------


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = write(tmp_path)
    with pytest.raises(InputError, match="a sweep compares validations"):
        T.sweep(path, {}, 1, tmp_path / "study.journal")
    values = yaml.safe_load(Path(path).read_text())
    values["train"]["validation"] = {"every": 3, "metric": "error"}
    path = write(tmp_path, **values)
    space: T.Space = {
        "optimizer.learning_rate": T.Range(1e-4, 1e-1, log=True),
        "options.width": T.Range(2, 5),
        "schedule.kind": T.Choice(("cosine", "constant")),
    }
    T.sweep(path, space, 2, tmp_path / "study.journal")
    study = T.sweep(path, space, 3, tmp_path / "study.journal")
    assert [t.number for t in study.trials] == [0, 1, 2]
    assert study.best_value == min(t.value for t in study.trials)
    for t in study.trials:
        stored = T.read_config(tmp_path / "run" / f"trial-{t.number:04d}" / "config.yaml")
        assert stored.train.optimizer.learning_rate == t.params["optimizer.learning_rate"]
        assert stored.values["options"]["width"] == t.params["options.width"]
    assert len(T.sweep(path, space, 3, tmp_path / "study.journal").trials) == 3
