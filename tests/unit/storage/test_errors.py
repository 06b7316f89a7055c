import inspect
import pickle

import pytest

from storage import errors

ALL = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Exception)]


@pytest.mark.parametrize("cls", ALL)
def test_every_error_survives_pickling_with_message_and_exit_code(cls):
    error = pickle.loads(pickle.dumps(cls("what, where, what to do")))
    assert type(error) is cls
    assert str(error) == "what, where, what to do"
    assert error.exit_code in (1, 2, 4, 75)


def test_the_docstring_tells_the_tree():
    assert errors.__doc__ is not None
    for cls in ALL:
        assert cls.__name__ in errors.__doc__
