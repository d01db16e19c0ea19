"""What goes wrong with the storage, as types.

    DarkroomError
    └── StorageError
        ├── ObjectMissing
        ├── ObjectTooLarge
        ├── ObjectDamaged            not what was stored, or not what was sent
        └── StorageUnavailable       (also `Unavailable`) no answer, or a refusal that only an operator can mend
            └── TransferBroken       the answer broke off

No message of these errors holds a secret or a signed link.
"""

from __future__ import annotations

from service.contract.errors import DarkroomError, Unavailable


class StorageError(DarkroomError):
    """The storage could not do what was asked."""


class ObjectMissing(StorageError):
    """There is no such object."""


class ObjectTooLarge(StorageError):
    """The object is larger than the reader takes."""


class ObjectDamaged(StorageError):
    """The object's bytes are not those that were stored."""


class StorageUnavailable(Unavailable, StorageError):
    """The storage does not answer."""


class TransferBroken(StorageUnavailable):
    """The storage broke off in the middle of an object."""
