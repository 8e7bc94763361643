"""Bad input is answered by one line."""

import pytest

from w2s_jax.core.errors import InputError


def error(call, *args, kind=InputError, **kwargs):
    """The one line that a call, or reading what it returns, is refused with."""
    with pytest.raises(kind) as caught:
        result = call(*args, **kwargs)
        if not isinstance(result, list | dict):
            list(result)
    message = str(caught.value)
    assert "\n" not in message
    return message
