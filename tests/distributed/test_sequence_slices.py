"""Dilated attention over slices of sequences in several gloo processes equals that of one process."""

import pytest

pytest.importorskip("fairseq")

from tests.fairseq_cli import run_gloo


@pytest.mark.parametrize(("processes", "cases"), [(2, 15), (4, 15)])
def test_slices_equal_one_process(processes: int, cases: int) -> None:
    done = run_gloo(processes, f"from tests.distributed.slices import check_cases; check_cases({cases})")
    assert done.check().stdout.count("passed") == processes


def test_only_what_is_kept_and_seen_travels() -> None:
    done = run_gloo(3, "from tests.distributed.slices import check_traffic; check_traffic()")
    assert done.check().stdout.count("passed") == 3


def test_lower_precision() -> None:
    done = run_gloo(2, "from tests.distributed.slices import check_low_precision; check_low_precision()")
    assert done.check().stdout.count("passed") == 2
