"""The small run of the tests of reports, made once."""

import pytest

from mt.tests.commands.report.small_runs import small_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("reports") / "small")
