"""What belongs to its process: an object that holds a program or a connection is copied in it, and never pickled.

Says so in words where a pickle is asked for, as by `multiprocessing` with spawn; what is held is not known here.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from compoff.errors import PickleError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Unpickled"]


class Unpickled:
    """A base of classes whose objects are not pickled.

    Examples:
        >>> import pickle
        >>> class Door(Unpickled):
        ...     _elsewhere = "make another one there"
        >>> pickle.dumps(Door())
        Traceback (most recent call last):
        compoff.errors.PickleError: a Door belongs to its process and cannot be pickled; make another one there

    Source: this project.
    """

    _elsewhere: ClassVar[str]
    """What to do in place of it."""

    def __copy__(self) -> Self:
        """A copy that holds the same things."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that holds copies, where what is held can be copied."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        try:
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        except TypeError as error:
            raise PickleError(
                f"this {type(self).__name__} cannot be copied with all that it holds ({error}); copy.copy(...) makes "
                f"one that holds the same, else {self._elsewhere}"
            ) from error
        return twin

    def __reduce__(self) -> NoReturn:
        raise PickleError(f"a {type(self).__name__} belongs to its process and cannot be pickled; {self._elsewhere}")
