"""Which replica a call goes to: in turn or by hash, away from those that failed.

Each address of a client has a channel of its own, which resolves its name, checks its certificate
and connects again by itself. gRPC can balance over a list only if all are literal IP addresses, and
checks one certificate name for all of them; so the choice between addresses is made here. The
choice between the servers behind one name (`dns:///`) is gRPC's: its policy `ring_hash`, by a key
that is sent with each call.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Final, Literal, TypeAlias, cast, get_args

from lazyfx.errors import LazyfxError
from lazyfx.flows import ONLY_PLACE, Place
from lazyfx.shared.addresses import is_balanced_name
from lazyfx.shared.printable import shown

Balance: TypeAlias = Literal["round_robin", "ring_hash", "in_order"]
HedgeAfter: TypeAlias = "float | Literal['auto']"

# A replica that failed is tried last for this long, twice as long after each further failure.
_FIRST_REST_SECONDS: Final = 0.5
_LONGEST_REST_SECONDS: Final = 5.0
# How many servers behind one name a conversation tries.
_TRIES_OF_A_NAME: Final = 3
# How often all replicas are tried before a call fails, and the first pause between.
_MAX_ROUNDS: Final = 4
_FIRST_PAUSE_SECONDS: Final = 0.1
# Further rounds while a server can be reached, and the pause before each: longer together than gRPC
# waits before it connects again.
_EXTRA_ROUNDS: Final = 4
_EXTRA_PAUSE_SECONDS: Final = 0.5
# The modules of which a client remembers the replica that compiled them.
_MAX_HOMES: Final = 4096
# The delay of a hedge before enough answers are known, its bounds, the number of answers from which
# it is computed, and after how many it is computed again.
_FIRST_HEDGE_SECONDS: Final = 0.05
_SHORTEST_HEDGE_SECONDS: Final = 0.002
_LONGEST_HEDGE_SECONDS: Final = 1.0
_RECENT: Final = 256
_ANSWERS_BETWEEN: Final = 16


def checked_balance(given: str, field: str) -> Balance:
    """The name of a policy.

    Raises:
        LazyfxError: There is no such policy.
    """
    if given not in get_args(Balance):
        raise LazyfxError(f"{field} is {shown(given)}; it must be one of {_choices()}")
    return cast("Balance", given)


def _choices() -> str:
    return ", ".join(get_args(Balance))


class HedgeDelay:
    """When a second replica is asked for what may be a hit. Threads may share it.

    "auto" is the 95th percentile of what recent answers took, so that at most about one call in 20
    is made twice (Dean and Barroso, "The Tail at Scale", 2013).

    Args:
        after: Seconds, or "auto".
    """

    def __init__(self, after: HedgeAfter) -> None:
        self._recent: deque[float] | None = None if after != "auto" else deque(maxlen=_RECENT)
        self._until_next = _ANSWERS_BETWEEN
        self.seconds = _FIRST_HEDGE_SECONDS if after == "auto" else after

    def record(self, seconds: float) -> None:
        """Learn from an answer, whichever replica gave it."""
        if self._recent is None:
            return
        self._recent.append(seconds)
        self._until_next -= 1
        if self._until_next <= 0:
            self._until_next = _ANSWERS_BETWEEN
            slow = sorted(self._recent)[int(0.95 * (len(self._recent) - 1))]
            self.seconds = min(max(slow, _SHORTEST_HEDGE_SECONDS), _LONGEST_HEDGE_SECONDS)


class Replicas:
    """The servers that a client knows, and which of them failed lately. Threads may share it.

    Args:
        addresses: As `addresses.read_address` returns each.
        balance: "round_robin": each conversation goes to the next replica; "ring_hash":
            conversations about one graph go to one replica, from all clients; "in_order": to the
            first that answers.
    """

    def __init__(self, addresses: Sequence[str], balance: Balance = "round_robin") -> None:
        self.addresses = tuple(addresses)
        self._balance = balance
        self._are_names = tuple(map(is_balanced_name, self.addresses))
        # Clients begin at random, so that those that make only one call are balanced, too.
        self._turns = itertools.count(random.randrange(len(self.addresses)))  # noqa: S311 - no secret
        self._resting: dict[int, tuple[float, float]] = {}
        self._homes: OrderedDict[bytes, Place] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def are_several(self) -> bool:
        """Whether a failed call can be made again to another server."""
        return len(self.addresses) > 1 or self._are_names[0]

    def route(self, subject: bytes = b"", home: bytes = b"") -> Route:
        """The replicas for one conversation, in the order in which they are to be tried.

        Args:
            subject: What it is about, the digest of a graph: for `ring_hash`.
            home: Key of the module that it is about, which may be on one replica only.
        """
        if not self.are_several:
            return Route(self, (ONLY_PLACE,))
        known = self._homes.get(home)
        # What goes to its home takes no turn.
        turn = known.replica if known else next(self._turns) % len(self.addresses)
        places = [known] if known else []
        places += self._places(subject, turn)
        return Route(self, tuple(sorted(dict.fromkeys(places), key=self.rests)))

    def remember_home(self, module_key: bytes, place: Place) -> None:
        """Remember which replica has a module."""
        if not self.are_several:
            return
        with self._lock:
            self._homes[module_key] = place
            self._homes.move_to_end(module_key)
            if len(self._homes) > _MAX_HOMES:
                self._homes.popitem(last=False)

    def failed(self, place: Place) -> None:
        """Let a replica rest."""
        if self._are_names[place.replica]:
            return  # gRPC knows which of its servers failed
        with self._lock:
            _, seconds = self._resting.get(place.replica, (0.0, _FIRST_REST_SECONDS / 2))
            seconds = min(2 * seconds, _LONGEST_REST_SECONDS)
            self._resting[place.replica] = (time.monotonic() + seconds, seconds)

    def answered(self, place: Place) -> None:
        """Use a replica in its turn again."""
        if self._resting:
            with self._lock:
                self._resting.pop(place.replica, None)

    def rests(self, place: Place) -> bool:
        """Whether a replica failed a moment ago."""
        return self._resting.get(place.replica, (0.0, 0.0))[0] > time.monotonic()

    def _places(self, subject: bytes, turn: int) -> Iterator[Place]:
        count = len(self.addresses)
        if subject and self._balance == "ring_hash":
            key = subject.hex()
            order = sorted(range(count), key=lambda i: _weight(subject, self.addresses[i]))
        else:
            key = f"{random.getrandbits(64):x}" if any(self._are_names) else ""
            first = 0 if self._balance == "in_order" else turn
            order = [(first + i) % count for i in range(count)]
        for i in order:
            for attempt in range(_TRIES_OF_A_NAME if self._are_names[i] else 1):
                yield Place(i, f"{key}.{attempt}" if self._are_names[i] else "")


class Route:
    """Where the calls of one conversation go: to one replica, as long as that answers.

    Args:
        replicas: Learns which replicas fail.
        places: In the order in which they are to be tried.

    Attributes:
        place: Where the next call goes.
    """

    def __init__(self, replicas: Replicas, places: Sequence[Place]) -> None:
        self._replicas = replicas
        self._places = places
        self._at = 0
        self._rounds_left = _MAX_ROUNDS if replicas.are_several else 0
        self._extra_rounds_left = _EXTRA_ROUNDS if replicas.are_several else 0
        self._pause = _FIRST_PAUSE_SECONDS
        self.place = places[0]

    @property
    def address(self) -> str:
        """The address to which the next call goes."""
        return self._replicas.addresses[self.place.replica]

    def other(self) -> Place | None:
        """A place for a second call beside the one under way; None if there is only one replica."""
        others = (place for place in self._places if place != self.place)
        return next(others, None)

    def move(self) -> bool:
        """Go on at the next replica; False if each has been tried in this round."""
        self._replicas.failed(self.place)
        if self._at + 1 >= len(self._places):
            return False
        self._at += 1
        self.place = self._places[self._at]
        return True

    def move_to(self, place: Place) -> None:
        """Go on at the replica that answered first."""
        self._at, self.place = self._places.index(place), place

    def start_over(self) -> None:
        """Begin another round, after a delay that the servers asked for."""
        self._places = sorted(self._places, key=self._replicas.rests)
        self._at, self.place = 0, self._places[0]

    def next_round(self) -> float | None:
        """Begin another round after a failed one; the seconds to pause, or None to give up."""
        self._rounds_left -= 1
        if self._rounds_left <= 0:
            return None
        self.start_over()
        pause, self._pause = self._pause, 2 * self._pause
        return pause * (0.8 + 0.4 * random.random())  # noqa: S311 - spreads load only

    def extra_round(self) -> float | None:
        """Begin a round because a server can be reached again; the seconds to pause, or None."""
        if not self._extra_rounds_left:
            return None
        self._extra_rounds_left -= 1
        self.start_over()
        return _EXTRA_PAUSE_SECONDS

    def answered(self) -> None:
        """The replica answered."""
        self._replicas.answered(self.place)


def _weight(subject: bytes, address: str) -> bytes:
    """The rank of an address for a subject (rendezvous hashing), the same in every client."""
    return hashlib.blake2b(address.encode() + b"\0" + subject, digest_size=8).digest()
