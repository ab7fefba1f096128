"""The partitions that the group has given to a server: read from where, finished up to where."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from resilient_client.transports._link import LONGEST_WAIT
from resilient_client.transports.kafka._aiokafka import ConsumerRebalanceListener
from resilient_client.transports.kafka._driver import position_of, rejoin
from resilient_client.transports.kafka._errors import AIOKAFKA_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from resilient_client.transports.kafka._lane import Lane

log = logging.getLogger("resilient_client.kafka")

COMMIT_INTERVAL = 0.05
"""Seconds between two commits: a member that is killed repeats what it finished meanwhile."""
MAX_WAITING = 500
"""Records read but not begun, a partition, before no more are fetched from it."""


class Partitions:
    """A lane for each, and the committing of what is finished; hears of every rebalance.

    Args:
        lane: makes the lane of a partition of a topic.
        group: the consumer group's name.
        session: seconds without a sign of life until the group gives a member's partitions away.
        request_timeout: seconds that a question to the broker may take.
        from_beginning: where to begin if the group has committed nothing.

    Attributes:
        consumer: the member of the group; None while there is none.
        joined: set when the group has said for the first time which partitions are ours.
        stopping: what runs is not awaited any more when a partition is taken away.
    """

    def __init__(
        self,
        lane: Callable[[str], Lane],
        group: str,
        *,
        session: float,
        request_timeout: float,
        from_beginning: bool,
    ) -> None:
        self.consumer: Any = None
        self.joined = asyncio.Event()
        self.stopping = False
        self._lane = lane
        self._group = group
        self._session = session
        self._request_timeout = request_timeout
        self._from_beginning = from_beginning
        self._lanes: dict[Any, Lane] = {}
        self._owned: set[Any] = set()
        self._held: set[Any] = set()  # those of them that are not read for the moment
        self._first: dict[str, int] = {}  # partitions of each topic when the group was joined
        self._dirty = asyncio.Event()
        self._progress = asyncio.Event()

    def expect(self, topics: Mapping[str, int]) -> None:
        """So many partitions each of these topics has now; those added later are read from 0."""
        for topic, number in topics.items():
            self._first.setdefault(topic, number)

    def read(self, place: Any, records: Sequence[Any]) -> None:
        """Records of a partition, in order; it is not read on while too many of them wait."""
        lane = self._lanes.get(place)
        if lane is None or place not in self._owned:
            return  # it was taken away in this very moment
        first = records[0].offset
        if first < lane.next:  # what this lane knows is about records that are no more
            log.warning("%s: %s was made anew, or cut: read from %d", self._group, place, first)
            lane = self._lanes[place] = self._lane(place.topic)
            lane.begin(first)
        lane.add(records)
        if lane.waiting > MAX_WAITING:
            self.consumer.pause(place)
            self._held.add(place)

    def finished(self, lane: Lane, records: Sequence[Any]) -> None:
        """These are done with."""
        lane.finished(records)
        self._dirty.set()
        self._progress.set()
        if self._held and lane.waiting <= MAX_WAITING // 2:
            self._let_go(records[0])

    async def rest(self, lane: Lane, records: Sequence[Any], seconds: float) -> list[Any]:
        """Wait before another attempt: those of these records that are still to be handled here.

        Whoever has the partition by then handles them; two would not keep the order of a key.
        """
        lane.resting += 1
        self._progress.set()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:  # the server stops
            lane.dropped(records)
            raise
        finally:
            lane.resting -= 1
        return self.kept(lane, records)

    def kept(self, lane: Lane, records: Sequence[Any]) -> list[Any]:
        """Those of them that are still to be handled here; if none is, they are given up."""
        place = (records[0].topic, records[0].partition)
        ours = place in self._owned and self._lanes.get(place) is lane
        left = [record for record in records if lane.runs(record)] if ours else []
        if not left:
            lane.dropped(records)
        return left

    def _let_go(self, record: Any) -> None:
        """Read on from this record's partition, if it is still ours."""
        for place in tuple(self._held):
            if place == (record.topic, record.partition):
                self._held.discard(place)
                if place in self._owned:
                    self.consumer.resume(place)

    def pass_over(self) -> None:
        """What was read and holds no record is finished, too: a transaction's end, an aborted one.

        Else those who watch the group would see it lag behind for ever.
        """
        if self.consumer is None:
            return
        for place in self._owned:
            lane = self._lanes.get(place)
            offset = None if lane is None else position_of(self.consumer, place)
            if lane is not None and offset is not None and lane.pass_over(offset):
                self._dirty.set()

    def stop(self) -> None:
        """The server is about to end: what still runs is not awaited any more."""
        self.stopping = True
        self._progress.set()

    def drop_waiting(self) -> None:
        """Begin nothing more of what was read."""
        for lane in self._lanes.values():
            lane.drop_waiting()

    def give_up(self) -> None:
        """Begin nothing more of any partition until the group gives it to us again."""
        self._owned.clear()
        self._held.clear()
        self.drop_waiting()

    def forget_committed(self) -> None:
        """The server has ended: what it begins with next time is said by the group again.

        What was not finished is begun again then, and what is finished and not committed is not.
        """
        old, self._lanes = self._lanes, {}
        for place, lane in old.items():
            if lane.prefix != lane.committed:
                kept = self._lanes[place] = self._lane(place.topic)
                kept.prefix, kept.committed = lane.prefix, lane.committed

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """Let what runs end, within reason, and commit it before others go on from there."""
        places = set(revoked)
        self._owned -= places
        self._held -= places
        lanes = [self._lanes[place] for place in places if place in self._lanes]
        for lane in lanes:
            lane.drop_waiting()
        deadline = time.monotonic() + self._session / 2
        while any(lane.running > lane.resting for lane in lanes) and not self.stopping:
            left = deadline - time.monotonic()
            if left <= 0:
                log.info("%s: %d handlers are not awaited", self._group,
                         sum(lane.running - lane.resting for lane in lanes))  # fmt: skip
                break
            self._progress.clear()
            try:
                async with asyncio.timeout(left):
                    await self._progress.wait()
            except TimeoutError:
                continue
        await self.commit(places)

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """Go on from what is committed; without that from the end, or the beginning."""
        places = list(assigned)
        for topic in self._first:
            if not self.consumer.partitions_for_topic(topic):  # it was removed: all will be new
                self._first[topic] = 0
        try:
            async with asyncio.timeout(self._request_timeout):
                await self._begin_reading(places)
        except (*AIOKAFKA_ERRORS, TimeoutError) as error:
            # aiokafka would go on as if nothing had happened
            log.warning("%s: where to read from is not known: %r", self._group, error)
            asyncio.get_running_loop().call_later(LONGEST_WAIT, rejoin, self.consumer)
            return
        self._dirty.set()
        self.joined.set()

    async def _begin_reading(self, places: list[Any]) -> None:
        consumer = self.consumer
        committed = await asyncio.gather(*(consumer.committed(place) for place in places))
        for index, place in enumerate(places):
            lane = self._lanes.get(place)
            if committed[index] is None and lane is not None and lane.committed is None:
                committed[index] = lane.prefix  # what is known here could not be committed yet
        begins = await asyncio.gather(
            *(
                self._begin_of(place)
                for place, offset in zip(places, committed, strict=True)
                if offset is None
            )
        )
        # no record may be read between the first of these and the last
        unread = iter(begins)
        for place, offset in zip(places, committed, strict=True):
            lane = self._lanes.get(place)
            if lane is None or offset is None:  # also a topic that was made anew
                lane = self._lanes[place] = self._lane(place.topic)
            lane.committed = offset
            consumer.seek(place, lane.begin(next(unread) if offset is None else offset))
        self._owned.update(places)

    async def _begin_of(self, place: Any) -> int:
        """Where a group begins that has committed nothing here.

        A partition that was added while the group was there is read from its beginning, and so is
        one of a topic that was made anew.
        """
        added = place in self._lanes or place.partition >= self._first.get(place.topic, 0)
        consumer = self.consumer
        find = consumer.end_offsets
        if added or self._from_beginning:
            find = consumer.beginning_offsets
        offset: int = (await find([place]))[place]
        return offset

    async def commit_always(self) -> None:
        """Commit for ever, as often as something is finished."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self.commit()
            await asyncio.sleep(COMMIT_INTERVAL)

    async def commit(self, places: Iterable[Any] | None = None) -> None:
        """Commit what is finished, without a gap, in these partitions or all of ours."""
        offsets = {}
        for place in tuple(self._owned if places is None else places):
            lane = self._lanes.get(place)
            if lane is not None and lane.prefix is not None and lane.prefix != lane.committed:
                offsets[place] = lane.prefix
        consumer = self.consumer
        if not offsets or consumer is None:
            return
        try:
            async with asyncio.timeout(self._request_timeout):
                await consumer.commit(offsets)
        except (*AIOKAFKA_ERRORS, TimeoutError) as error:
            # the next one says the same, or the partition is another member's by now
            log.debug("%s: offsets were not committed: %r", self._group, error)
            if places is None:
                self._dirty.set()
            return
        for place, offset in offsets.items():
            self._lanes[place].committed = offset


ConsumerRebalanceListener.register(Partitions)
