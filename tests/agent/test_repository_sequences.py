"""Whatever a publisher does in whatever order: new boards and old ones accept it, from the first root on."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.repository_check import check_repository
from agent.repository_keys import ROLES
from agent.repository_root import refresh, rotate, sign
from agent.repository_source import FolderSource
from tests.simulators.publication import MODEL, NAME, Publication, card, now

pytestmark = pytest.mark.once

STICKS = {0, 1, 2}
actions = st.one_of(
    st.tuples(st.just("publish")),
    st.tuples(st.just("grant again")),
    st.tuples(st.just("rotate"), st.sampled_from(ROLES), st.permutations(sorted(STICKS)), st.integers(1, 3)),
    st.tuples(st.just("wait and refresh"), st.integers(0, 60)),
    st.tuples(st.just("renew")),
)


class Story:
    """Goes through actions; the publisher's clock may run ahead of that of the boards, never behind it."""

    def __init__(self, folder: Path) -> None:
        self.ahead = timedelta()
        self.world = Publication(folder, lambda: now() + self.ahead)
        self.world.create(sticks=3, threshold=2)
        self.versions: list[str] = []

    def publish(self) -> None:
        publisher = self.world.publisher()
        target = publisher.publish(MODEL, card(f"1.{len(self.versions)}"))
        publisher.grant(self.world.identity.public, NAME, target.version)
        self.versions.append(target.version)

    def grant_again(self) -> None:
        if self.versions:
            self.world.publisher().grant(self.world.identity.public, NAME, self.versions[0])

    def rotate(self, role: str, sticks: list[int], first: int) -> None:
        """The first sticks begin, the others come later, one at a time; boards are asked in between."""
        state = rotate(self.world.signed(*sticks[:first]), role)
        for stick in sticks[first:]:
            if state.in_force:
                break
            self.boards_accept()
            state = sign(self.world.signed(stick))
        assert state.in_force

    def wait_and_refresh(self, days: int) -> None:
        self.ahead += timedelta(days=days)
        refresh(self.world.signed(*STICKS))
        report = check_repository(
            FolderSource(self.world.repository), self.world.pinned.read_bytes(), self.world.clock()
        )
        assert report.findings == []

    def renew(self) -> None:
        self.world.publisher().renew()

    def boards_accept(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.world.folder) as fresh:
            self.world.board_opens(fresh, *self.versions)
        self.world.board_opens("followed", *self.versions)


@settings(max_examples=25, deadline=None)
@given(st.lists(actions, min_size=1, max_size=10))
def test_boards_follow_every_sequence(steps: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        story = Story(Path(folder))
        for name, *arguments in steps:
            getattr(story, str(name).replace(" ", "_"))(*arguments)
            story.boards_accept()
        report = check_repository(FolderSource(story.world.repository), story.world.pinned.read_bytes(), now())
        assert [item for item in report.findings if item.code != "metadata-ahead"] == []
        assert len(report.models) == report.grants == len(story.versions)
