"""The runs that tests of several processes look at."""

import pytest

from tests.train.processes import together, train, write_inputs


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    """A folder with the runs one (a single process), two, shard, one-two and two-one."""
    folder = tmp_path_factory.mktemp("jobs")
    write_inputs(folder)
    train(folder, "one")
    found = together("trainings", folder)
    train(folder, "two-one", resume_from=str(folder / "two" / "checkpoints" / "checkpoint_step_00000005"))
    return folder, found
