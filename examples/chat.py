"""A chat room whose messages are its event log: readers follow it by cursor and miss nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from kelpie import Actor, Runtime, State, command, query
from kelpie.core.errors import ConflictError


class Post(msgspec.Struct, frozen=True):
    """One message, as readers get it."""

    author: str
    text: str


class Members(State):
    """Who is in the room."""

    names: set[str] = msgspec.field(default_factory=set[str])


class Room(Actor[Members]):
    """One chat room."""

    @command
    def join(self, name: str) -> int:
        """Enter; return how many are here."""
        self.state.names.add(name)
        return len(self.state.names)

    @command
    def say(self, author: str, text: str) -> None:
        """Post a message.

        Raises:
            ConflictError: The author is not in the room.
        """
        if author not in self.state.names:
            raise ConflictError(f"{author} has not joined {self.ctx.key}")
        self.ctx.emit("room.said", Post(author, text))

    @query
    def members(self) -> list[str]:
        """Return who is here, by name."""
        return sorted(self.state.names)


async def read(runtime: Runtime, room: str, *, after: int, count: int) -> list[Post]:
    """Return ``count`` posts after a cursor, waiting for those that are not there yet."""
    posts: list[Post] = []
    async for event in runtime.follow(runtime.ref(Room, room), after=after):
        posts.append(event.read(Post))
        if len(posts) == count:
            break
    return posts


async def main(path: Path) -> list[Post]:
    """Talk to oneself and return what was said."""
    async with Runtime.open(path, actors=[Room]) as runtime:
        room = runtime.ref(Room, "lobby")
        await room.join("ada")
        await room.say("ada", "Is anybody here?")
        await room.say("ada", "Good.")
        return await read(runtime, "lobby", after=0, count=2)


if __name__ == "__main__":
    print(asyncio.run(main(Path("chat.db"))))
