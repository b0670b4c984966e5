"""Out of memory at every allocation, a device lost at every submit, a driver that writes nothing: always a clear error,
and a state from which training goes on to the same bytes."""

import numpy as np
import pytest

from anytune.engine.webgpu.device import Device
from anytune.engine.webgpu.failures import DeviceError
from anytune.errors import UserError
from anytune.model import Lora, load
from tests.cli.conftest import cli  # noqa: F401 (a fixture)
from tests.engine.test_torch_engine import trainee_of
from tests.model.conftest import stream
from tests.support import tiny
from tests.support.webgpu import need_webgpu


@pytest.fixture(scope="module", autouse=True)
def device():
    need_webgpu()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("webgpu") / "qwen3.gguf", "qwen3")


class Fault:
    """Fails the n-th call of a method of Device from when it is armed, and those after it if it is for good."""

    def __init__(self, monkeypatch, method, kind, for_good):
        self.left, self.calls, self.kind, self.for_good = None, 0, kind, for_good
        real = getattr(Device, method)

        def call(*args, **kwargs):
            self.calls += 1
            if self.left is not None:
                self.left -= 1
                if self.left == 0 or (self.for_good and self.left < 0):
                    raise DeviceError(self.kind, "injected")
            return real(*args, **kwargs)

        monkeypatch.setattr(Device, method, call)

    def arm(self, n):
        self.left = n


def step(trainee, number=1):
    loss = float(trainee.accumulate(stream([20, 9], seed=number), 0.05, number, 0))
    return loss, float(trainee.update(1e-3, number))


def test_out_of_memory_at_every_allocation_of_a_step(path, monkeypatch):
    fault = Fault(monkeypatch, "buffer", "memory", False)
    trainee = trainee_of(path, "webgpu")
    start = trainee.state()
    wanted, after = step(trainee), trainee.state()
    trainee.engine.release()
    trainee.load_state(start)
    before = fault.calls
    assert step(trainee) == wanted  # what is made once is there by now
    count = fault.calls - before
    assert count > 20
    for n in range(1, count + 1):
        trainee.engine.release()
        trainee.load_state(start)
        fault.arm(n)
        with pytest.raises(DeviceError) as caught:
            step(trainee)
        assert "--memory" in trainee.engine.explain(caught.value, 1 << 20) and "--memory" in str(caught.value)
        fault.arm(None)
        trainee.load_state(start)  # what a resumed run does
        assert step(trainee) == wanted
        for name, value in trainee.state().items():
            np.testing.assert_array_equal(value, after[name])


def test_out_of_memory_while_the_model_is_loaded(path, monkeypatch):
    fault = Fault(monkeypatch, "buffer", "memory", False)
    trainee_of(path, "webgpu")
    for n in range(1, fault.calls, max(1, fault.calls // 12)):
        fault.arm(n)
        with pytest.raises(UserError, match="memory"):
            trainee_of(path, "webgpu")


def test_lost_at_every_submit_of_two_steps(path, monkeypatch):
    fault = Fault(monkeypatch, "submit", "lost", True)
    trainee = trainee_of(path, "webgpu")
    start, before = trainee.state(), fault.calls
    wanted = [step(trainee, 1), step(trainee, 2)]
    count = fault.calls - before
    assert count >= 4
    for n in range(1, count + 1):
        trainee = trainee_of(path, "webgpu")
        fault.arm(n)
        with pytest.raises(DeviceError) as caught:
            step(trainee, 1)
            step(trainee, 2)
        assert "--resume-from auto" in trainee.engine.explain(caught.value)
        fault.arm(None)
    trainee = trainee_of(path, "webgpu")
    trainee.load_state(start)
    assert [step(trainee, 1), step(trainee, 2)] == wanted


def test_a_device_that_is_really_gone(path):
    trainee = trainee_of(path, "webgpu")
    step(trainee)
    trainee.engine.device.raw.destroy()
    with pytest.raises(DeviceError) as caught:
        step(trainee, 2)
    assert trainee.engine.explain(caught.value)


def test_a_driver_that_writes_nothing_is_refused(path, monkeypatch):
    monkeypatch.setattr(Device, "submit", lambda self, commands: None)
    with pytest.raises(UserError, match="wrongly"):
        load(path, device="webgpu").trainee(Lora(), ubatch=32)


def test_a_device_that_goes_wrong_later_is_found(path, monkeypatch):
    trainee = trainee_of(path, "webgpu")
    trainee.engine.canary.check()
    monkeypatch.setattr(Device, "submit", lambda self, commands: None)
    with pytest.raises(DeviceError, match="wrongly"):
        trainee.engine.canary.check()


@pytest.mark.parametrize("n", (3, 14))
def test_a_run_that_loses_its_device_is_resumed_to_the_same_bytes(path, cli, tmp_path, monkeypatch, n):  # noqa: F811
    (tmp_path / "t.txt").write_text("\n".join(f"line {i} of the text that is learned here" for i in range(40)))

    def train(name, *more):
        return cli(
            "train",
            "-m",
            path,
            "-f",
            tmp_path / "t.txt",
            "--device",
            "webgpu",
            "-c",
            32,
            "-ub",
            32,
            "-b",
            64,
            "--lora-rank",
            2,
            "--checkpoint-save-steps",
            1,
            "--num-epochs",
            1,
            "--run-dir",
            tmp_path / name,
            *more,
        )

    monkeypatch.chdir(tmp_path)
    whole = train("whole")
    assert whole.code == 0, whole.err
    fault = Fault(monkeypatch, "post", "lost", True)  # twice a step and more
    fault.arm(n)
    ended = train("cut")
    assert ended.code == 2 and "--resume-from auto" in ended.err.splitlines()[-1] and "Traceback" not in ended.err
    fault.arm(None)
    again = train("cut", "--resume-from", "auto")
    assert again.code == 0, again.err
    assert (tmp_path / "cut" / "adapter.gguf").read_bytes() == (tmp_path / "whole" / "adapter.gguf").read_bytes()
