"""The line in which requests wait, fair over tenants: behind one's thousand, another's come next when a row is free."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar


class Waits(Protocol):
    """What stands in a line. Who is `gone` leaves it unanswered."""

    @property
    def tenant(self) -> str: ...

    @property
    def gone(self) -> bool: ...


One = TypeVar("One", bound=Waits)


class Line(Generic[One]):
    """The tenant with the fewest rows in use comes next, of these the one that was served the longest ago.

    Requests of one tenant keep their order. Others may ask how long it is while one thread changes it.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[One]] = {}
        self._served: dict[str, int] = {}
        self._turns = 0

    def __len__(self) -> int:
        return sum(map(len, list(self._waiting.values())))

    def __iter__(self) -> Iterator[One]:
        return (one for waiting in self._waiting.values() for one in waiting)

    def of(self, tenant: str) -> int:
        """How many of a tenant's wait."""
        return len(self._waiting.get(tenant, ()))

    def append(self, one: One) -> None:
        self._waiting.setdefault(one.tenant, deque()).append(one)

    def first(self, in_use: Mapping[str, int]) -> One | None:
        """Whose turn it is.

        Args:
            in_use: rows that tenants have now; 0 where one is not named.
        """
        for tenant, waiting in list(self._waiting.items()):
            while waiting and waiting[0].gone:
                waiting.popleft()
            self._drop_empty(tenant)
        if not self._waiting:
            return None
        tenant = min(self._waiting, key=lambda one: (in_use.get(one, 0), self._served.get(one, 0)))
        return self._waiting[tenant][0]

    def remove(self, first: One) -> None:
        """Take out the one whose turn it was."""
        taken = self._waiting[first.tenant].popleft()
        assert taken is first, "nobody overtakes those of the same tenant"
        self._drop_empty(first.tenant)
        self._turns += 1
        self._served[first.tenant] = self._turns

    def clear(self) -> None:
        self._waiting.clear()

    def _drop_empty(self, tenant: str) -> None:
        if not self._waiting[tenant]:
            del self._waiting[tenant]
