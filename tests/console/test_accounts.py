"""Users, passwords, sessions and one-time links."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import BoardError, SpecError
from agent.keys_consoles import Role
from service.console.account_page import browser_of
from service.console.accounts import LINK_S, MAX_USERS, Accounts
from service.console.accounts_file import FILE_NAME, USER_NAME, token_id
from service.console.audit import Audit
from service.console.passwords import AT_ONCE, MOST_WAITING, Cost, Hashing, check_password
from service.console.room import Room
from service.console.sessions import MAX_SESSIONS, WHOLE_S, csrf_of
from tests.console.conftest import CHEAP, PASSWORD, Client, Clock, log_in, visit

FRESH = "another quiet river"


@pytest.fixture
def accounts(tmp_path: Path, clock: Clock) -> Accounts:
    return Accounts(tmp_path / "state", clock, CHEAP)


def run(folder: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """SQL on the file of users, past the console."""
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as database:
        return list(database.execute(query, values))


def add(accounts: Accounts, name: str = "alice", role: Role = Role.OWNER, password: str = PASSWORD) -> None:
    asyncio.run(accounts.add(name, role, password))


def logs_in(accounts: Accounts, name: str, password: str) -> bool:
    return asyncio.run(accounts.log_in(name, password)) is not None


# --- users -----------------------------------------------------------------------------------------------------------


def test_a_user_logs_in_by_name_and_password(accounts: Accounts) -> None:
    add(accounts)
    user = asyncio.run(accounts.log_in("alice", PASSWORD))
    assert user is not None
    assert (user.name, user.role, user.disabled) == ("alice", Role.OWNER, False)
    for name, password in (
        ("alice", PASSWORD + "x"),
        ("alice", ""),
        ("bob", PASSWORD),
        ("", ""),
        ("a" * 999, "x" * 999),
    ):
        assert not logs_in(accounts, name, password)


def test_letters_count_in_either_form(accounts: Accounts) -> None:
    """A keyboard may write é as one sign or as two."""
    add(accounts, password="dòng sông êm đềm".replace("ê", "e\u0302"))
    assert logs_in(accounts, "alice", "dòng sông êm đềm")


def test_no_password_lies_in_the_file(accounts: Accounts, tmp_path: Path) -> None:
    add(accounts)
    token = accounts.sessions.begin("alice")
    link = accounts.make_link("alice")
    accounts.close()
    for path in (tmp_path / "state").iterdir():
        assert path.stat().st_mode & 0o077 == 0
        for secret in (PASSWORD, token, link, csrf_of(token)):
            assert secret.encode() not in path.read_bytes()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_the_usual_hash_is_that_of_the_rfc(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "state", time.time)
    add(accounts)
    kept = run(tmp_path / "state", "SELECT hash FROM users")[0][0]
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_a_hash_of_another_cost_is_made_anew_at_a_login(tmp_path: Path, clock: Clock) -> None:
    add(Accounts(tmp_path / "state", clock, CHEAP))
    later = Accounts(tmp_path / "state", clock, Cost(memory_kib=128, passes=1, lanes=1))
    assert logs_in(later, "alice", PASSWORD)
    assert "m=128" in run(tmp_path / "state", "SELECT hash FROM users")[0][0]
    assert logs_in(later, "alice", PASSWORD)


@pytest.mark.parametrize("name", ["", "-", ".a", "Alice", "a b", "a" * 33, "ä", "a\n", "../a", "a/b"])
def test_names_are_bounded(accounts: Accounts, name: str) -> None:
    with pytest.raises(SpecError):
        add(accounts, name)


def test_a_name_is_taken_once_and_there_are_at_most_so_many(accounts: Accounts) -> None:
    add(accounts)
    with pytest.raises(SpecError) as told:
        add(accounts)
    assert told.value.code == "user-exists"
    for number in range(MAX_USERS - 1):
        add(accounts, f"u{number}", Role.VIEWER)
    with pytest.raises(SpecError) as told:
        add(accounts, "one-more")
    assert told.value.code == "users-full"


@pytest.mark.parametrize("deed", ["remove", "demote", "disable"])
def test_the_last_owner_stays(accounts: Accounts, deed: str) -> None:
    add(accounts)
    add(accounts, "bob", Role.OPERATOR)

    def do() -> None:
        asyncio.run(
            {
                "remove": lambda: accounts.remove("alice"),
                "demote": lambda: accounts.set_role("alice", Role.VIEWER),
                "disable": lambda: accounts.set_disabled("alice", disabled=True),
            }[deed]()
        )

    with pytest.raises(SpecError) as told:
        do()
    assert told.value.code == "last-owner"
    assert accounts.has_owner()
    add(accounts, "carol")
    do()
    assert accounts.has_owner()


def test_another_process_changes_users_and_it_counts_at_once(accounts: Accounts, tmp_path: Path, clock: Clock) -> None:
    add(accounts)
    add(accounts, "bob", Role.OPERATOR)
    token = accounts.sessions.begin("bob")
    beside = Accounts(tmp_path / "state", clock, CHEAP)
    asyncio.run(beside.remove("bob"))
    assert accounts.sessions.find(token) is None
    assert accounts.user("bob") is None


def test_many_who_make_the_file_at_once_make_one(tmp_path: Path, clock: Clock) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda _: (Accounts(tmp_path / "s", clock, CHEAP), Audit(tmp_path / "s", clock)), range(8))
        )
    add(made[0][0])
    made[3][1].write("alice", "login")
    assert [accounts.has_owner() for accounts, _ in made] == [True] * 8
    assert [trail.head()[0] for _, trail in made] == [1] * 8


def test_files_that_others_may_read_are_refused(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "state"
    Accounts(folder, clock, CHEAP).close()
    (folder / FILE_NAME).chmod(0o644)
    with pytest.raises(BoardError) as told:
        Accounts(folder, clock, CHEAP)
    assert told.value.code == "key-permissions"
    (folder / FILE_NAME).chmod(0o600)
    folder.chmod(0o755)
    with pytest.raises(BoardError):
        Accounts(folder, clock, CHEAP)


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path, clock: Clock) -> None:
    Accounts(tmp_path / "state", clock, CHEAP).close()
    run(tmp_path / "state", "PRAGMA user_version = 99")
    with pytest.raises(BoardError, match="newer temperd"):
        Accounts(tmp_path / "state", clock, CHEAP)


def test_a_file_that_is_none_is_an_error_of_ours(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / FILE_NAME).write_bytes(b"not a database" * 1000)
    (tmp_path / "state" / FILE_NAME).chmod(0o600)
    with pytest.raises(BoardError) as told:
        Accounts(tmp_path / "state", clock, CHEAP)
    assert told.value.code == "disk"


# --- passwords -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "password",
    [
        *("", "short", "password123", "Passw0rd!!", "1234567890", "alice12345", "alicealice1", "aaaaaaaaaaaa"),
        *("1212121212", "qwertyuiop", "0987654321", "abcdefghij", "raspberry1!", "matkhau123", "!!!!!!!!!!"),
    ],
)
def test_what_is_guessed_first_is_refused(password: str) -> None:
    with pytest.raises(SpecError):
        check_password(password, "alice")


@pytest.mark.parametrize("password", [PASSWORD, "ngựa đúng pin ghim", "x7!kq9#mz2", "🐟🐠🐡🐙🦑🦐🦞🦀🐚🐳"])
def test_what_is_good_passes(password: str) -> None:
    check_password(password, "alice")


@given(st.text(max_size=300))
def test_any_text_is_taken_or_refused(password: str) -> None:
    try:
        check_password(password, "alice")
    except SpecError as error:
        assert error.code in ("password-short", "password-long", "password-obvious")  # noqa: PT017 - either is right


def test_so_many_hash_at_once_and_the_rest_is_turned_away() -> None:
    hashing = Hashing(CHEAP)
    release, running, most = threading.Event(), [0], [0]

    def slow() -> str:
        running[0] += 1
        most[0] = max(most[0], running[0])
        release.wait(20)
        running[0] -= 1
        return ""

    async def crowd() -> list[object]:
        waiting = [asyncio.create_task(hashing._on_thread(slow)) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(BoardError) as told:
            await hashing.hash(PASSWORD)
        assert told.value.code == "busy"
        release.set()
        return await asyncio.gather(*waiting)

    asyncio.run(crowd())
    assert 1 <= most[0] <= AT_ONCE


def test_unknown_users_cost_a_hash_as_well(accounts: Accounts) -> None:
    class Counting(Hashing):
        verified = 0

        def _verify(self, kept: str, password: str) -> bool:
            self.verified += 1
            return super()._verify(kept, password)

    counting = accounts._hashing = Counting(CHEAP)
    add(accounts)
    for number, (name, password) in enumerate(
        [("alice", "wrong wrong wrong"), ("nobody", "wrong wrong wrong"), ("nobody", "x" * 9999), ("", "")], 1
    ):
        assert not logs_in(accounts, name, password)
        assert counting.verified == number


# --- sessions --------------------------------------------------------------------------------------------------------


def test_a_user_has_at_most_so_many_sessions(accounts: Accounts, clock: Clock) -> None:
    add(accounts)
    tokens = []
    for _ in range(MAX_SESSIONS + 5):
        clock.pass_(1)
        tokens.append(accounts.sessions.begin("alice"))
    assert [accounts.sessions.find(token) is not None for token in tokens] == [False] * 5 + [True] * MAX_SESSIONS
    assert len(accounts.sessions.of("alice")) == MAX_SESSIONS


def test_what_has_expired_leaves_the_file(accounts: Accounts, clock: Clock, tmp_path: Path) -> None:
    add(accounts)
    accounts.sessions.begin("alice")
    clock.pass_(WHOLE_S + 1)
    accounts.sessions.begin("alice")
    assert run(tmp_path / "state", "SELECT count(*) FROM sessions")[0][0] == 1


def test_nobody_ends_the_session_of_somebody_else(accounts: Accounts) -> None:
    add(accounts)
    add(accounts, "bob", Role.VIEWER)
    token = accounts.sessions.begin("alice")
    assert not accounts.sessions.end(token_id(token), "bob")
    assert accounts.sessions.find(token) is not None
    assert accounts.sessions.by_id(token_id(token)) is not None
    assert accounts.sessions.end(token_id(token), "alice")
    assert accounts.sessions.find(token) is None
    assert accounts.sessions.by_id(token_id(token)) is None


def test_a_clock_that_is_set_back_keeps_sessions(accounts: Accounts, clock: Clock) -> None:
    add(accounts)
    token = accounts.sessions.begin("alice")
    clock.pass_(-3600)
    assert accounts.sessions.find(token) is not None


# --- links -----------------------------------------------------------------------------------------------------------


def test_the_first_owner_is_made_once(accounts: Accounts) -> None:
    before, link = accounts.make_link(), accounts.make_link()
    with pytest.raises(SpecError):
        accounts.link_user(before)
    assert accounts.link_user(link) == ""
    with pytest.raises(SpecError):
        asyncio.run(accounts.use_link(link, "alice", "short"))
    asyncio.run(accounts.use_link(link, "alice", PASSWORD))
    assert accounts.has_owner()
    with pytest.raises(SpecError):
        asyncio.run(accounts.use_link(link, "mallory", PASSWORD))
    with pytest.raises(SpecError):
        accounts.make_link()


def test_two_who_use_one_link_at_once_make_one_owner(accounts: Accounts) -> None:
    link = accounts.make_link()

    async def both() -> list[object]:
        uses = (accounts.use_link(link, name, PASSWORD) for name in ("alice", "bob"))
        return await asyncio.gather(*uses, return_exceptions=True)

    results = asyncio.run(both())
    assert sorted(result is None for result in results) == [False, True]
    assert len(accounts.users()) == 1


def test_a_link_is_too_old_after_an_hour(accounts: Accounts, clock: Clock) -> None:
    link = accounts.make_link()
    clock.pass_(LINK_S + 1)
    with pytest.raises(SpecError) as told:
        asyncio.run(accounts.use_link(link, "alice", PASSWORD))
    assert told.value.code == "link-refused"
    assert accounts.users() == []


def test_a_set_up_link_is_void_once_the_command_line_made_an_owner(accounts: Accounts) -> None:
    link = accounts.make_link()
    add(accounts)
    with pytest.raises(SpecError):
        asyncio.run(accounts.use_link(link, "mallory", PASSWORD))
    assert [user.name for user in accounts.users()] == ["alice"]


def test_a_forgotten_password_is_set_by_a_link_and_sessions_end(accounts: Accounts) -> None:
    add(accounts)
    token = accounts.sessions.begin("alice")
    link = accounts.make_link("alice")
    assert accounts.link_user(link) == "alice"
    asyncio.run(accounts.use_link(link, "mallory", FRESH))
    assert logs_in(accounts, "alice", FRESH)
    assert not logs_in(accounts, "alice", PASSWORD)
    assert accounts.user("mallory") is None
    assert accounts.sessions.find(token) is None
    with pytest.raises(SpecError):
        asyncio.run(accounts.use_link(link, "", PASSWORD))


@given(st.text(max_size=100))
def test_no_text_is_a_user_name_by_chance(text: str) -> None:
    assert bool(USER_NAME.fullmatch(text)) == (
        text.isascii()
        and text != ""
        and all(letter.isdigit() or letter.islower() or letter in "._-" for letter in text)
        and text[0] not in "._-"
        and len(text) <= 32
    )


# --- pages -----------------------------------------------------------------------------------------------------------


def test_the_set_up_page_makes_the_first_owner(room: Room) -> None:
    asyncio.run(room.accounts.add("spare", Role.OWNER, PASSWORD))
    for name in ("owner", "spare"):
        run(room.settings.state, "DELETE FROM users WHERE name = ?", name)
    link = room.accounts.make_link()
    client = visit(room)
    assert "another set-up link" in client.get("/set-up?token=x").text
    page = client.show(f"/set-up?token={link}")
    assert "first" in page
    fields = {"token": link, "name": "Alice", "password": FRESH, "again": FRESH}
    assert client.submit("/set-up", **{**fields, "again": "x"}).status_code == 422
    assert client.submit("/set-up", **{**fields, "token": "x"}).status_code == 422
    assert client.submit("/set-up", **fields).headers["location"] == "/login?set=1"
    user = room.accounts.user("alice")
    assert user is not None
    assert user.role is Role.OWNER
    refused = client.get(f"/set-up?token={link}")
    assert refused.status_code == 422
    assert "There is an owner already" in refused.text  # a new start gives no link any more
    assert "another set-up link" not in refused.text
    assert log_in(client, "alice", FRESH).get("/users").status_code == 200


def test_set_up_links_are_not_guessed(room: Room) -> None:
    client = visit(room)
    client.get("/set-up?token=x")
    client.show("/login")
    codes = {
        client.submit("/set-up", token=str(n), name="a", password=FRESH, again=FRESH).status_code for n in range(40)
    }
    assert codes == {422, 429}


def test_wrong_names_and_passwords_get_the_same_page(room: Room) -> None:
    client = visit(room)
    client.show("/login")
    texts = []
    for name in ("owner", "nobody"):
        answer = client.submit("/login", name=name, password="wrong wrong wrong")
        assert answer.status_code == 422
        texts.append(answer.text.replace(f'value="{name}"', ""))
    assert texts[0] == texts[1]
    asyncio.run(room.accounts.set_disabled("viewer", disabled=True))
    answer = client.submit("/login", name="viewer", password=PASSWORD)
    assert answer.text.replace('value="viewer"', "") == texts[0]


def test_what_was_typed_for_a_name_is_no_name_in_the_trail(room: Room) -> None:
    """People type their password there at times."""
    client = visit(room)
    client.show("/login")
    client.submit("/login", name=FRESH, password="x")
    client.submit("/login", name="owner", password="x")
    assert [record.who for record in room.audit.everything()] == ["-", "owner"]
    assert all(FRESH not in str(record) for record in room.audit.everything())


def test_owners_look_after_users(owner: Client, room: Room) -> None:
    owner.show("/users")
    assert owner.submit("/users", name="Dung", role="operator", password=FRESH, again=FRESH).status_code == 303
    assert owner.submit("/users", name="dung", role="operator", password=FRESH, again=FRESH).status_code == 422
    assert owner.submit("/users", name="x", role="king", password=FRESH, again=FRESH).status_code == 422
    assert owner.submit("/users", name="x", role="viewer", password=FRESH, again="y").status_code == 422
    guest = log_in(visit(room), "dung", FRESH)
    assert owner.submit("/users/change", name="dung", deed="role", role="viewer").status_code == 303
    assert guest.get("/account").status_code == 303
    assert owner.submit("/users/change", name="dung", deed="disable").status_code == 303
    assert "kept out" in owner.show("/users")
    assert owner.submit("/users/change", name="dung", deed="enable").status_code == 303
    page = owner.submit("/users/change", name="dung", deed="link")
    assert "http://localhost/set-up?token=" in page.text
    assert owner.submit("/users/change", name="dung", deed="remove").status_code == 303
    assert room.accounts.user("dung") is None
    for fields in ({"deed": "burn"}, {"deed": "role", "role": "king"}, {"deed": "remove", "name": "../x"}):
        assert owner.submit("/users/change", **{"name": "viewer", **fields}).status_code == 422
    assert owner.submit("/users/change", name="owner", deed="remove").status_code == 422
    told = [record.action for record in room.audit.everything()]
    assert told[-2:] == ["user-remove", "user-change-refused"], "what was asked, and that it was not done"
    assert {"user-added", "user-role", "user-disable", "user-enable", "user-link", "user-remove"} <= set(told)


def test_a_user_ends_own_sessions(room: Room) -> None:
    first, second = log_in(visit(room), "viewer"), log_in(visit(room), "viewer")
    others = {session.id for session in room.accounts.sessions.of("viewer")}
    own = {token_id(first.cookies["temperd-session"])}
    (other,) = others - own
    assert first.submit("/account/session", id=other).headers["location"] == "/account?done=ended"
    assert second.get("/account").status_code == 303
    assert first.submit("/account/session", id="../x").status_code == 404
    assert first.submit("/account/session", id=own.pop()).headers["location"] == "/login"
    assert first.get("/account").status_code == 303


def test_a_password_is_changed_by_who_knows_it(operator: Client, room: Room) -> None:
    stolen = log_in(visit(room), "operator")
    assert operator.submit("/account/password", old="x", password=FRESH, again=FRESH).status_code == 422
    assert operator.submit("/account/password", old=PASSWORD, password=FRESH, again="x").status_code == 422
    assert operator.submit("/account/password", old=PASSWORD, password="short", again="short").status_code == 422
    assert operator.submit("/account/password", old=PASSWORD, password=FRESH, again=FRESH).status_code == 303
    assert operator.get("/account").status_code == 200, "a new session is there at once"
    assert stolen.get("/account").status_code == 303


@pytest.mark.parametrize("language", ["en", "vi"])
def test_all_pages_are_there_in_each_language(make_room: Callable[..., Room], language: str) -> None:
    client = log_in(visit(make_room()), "owner")
    client.submit("/account/language", language=language)
    for path in ("/account", "/users", "/key", "/audit", "/account?done=password"):
        assert f'<html lang="{language}"' in client.show(path)


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox, Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0", "Edge, Windows"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Version/18.0 Safari/604.1", "Safari, iOS"),
        ("curl/8.0", "curl/8.0"),
        ("", "?"),
    ],
)
def test_browsers_are_called_by_the_name_people_know(agent: str, name: str) -> None:
    assert browser_of(agent) == name
