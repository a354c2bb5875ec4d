"""Feast's classes are those of its source; whoever else asks for checks gets them."""

import pytest
import typeguard
from feast import Entity

CHECK = "check_argument_types"


def test_feast_is_not_instrumented():
    assert CHECK not in Entity.__init__.__code__.co_names


@pytest.mark.parametrize("options", [{}, {"debug_instrumentation": False}])
def test_other_modules_are(options):
    @typeguard.typechecked(**options)
    def double(number: int) -> int:
        return 2 * number

    assert double(2) == 4
    with pytest.raises(typeguard.TypeCheckError):
        double("2")
