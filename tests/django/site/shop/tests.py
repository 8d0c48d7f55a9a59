"""The site's tests, of every kind that Django has. Each makes sure that its database is the test database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import urlopen

from django.db import connections, transaction
from django.test import LiveServerTestCase, TestCase, TransactionTestCase

from bgpool.integrations.django import run
from tests.django.site.shop.models import Item


def names_of_databases() -> dict[str, str]:
    """Return the server's name of each alias's database."""
    asked = {}
    for alias in connections:
        wrapper: Any = connections[alias]
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT DATABASE()" if wrapper.vendor == "mysql" else "SELECT current_database()")
            asked[alias] = cursor.fetchone()[0]
    return asked


class InOneTransaction(TestCase):
    databases = {"default", "second", "replica"}  # noqa: RUF012  # as Django's documentation has it
    fixtures = ("items.json",)

    def test_every_alias_leads_to_its_test_database(self) -> None:
        asked = names_of_databases()
        assert all(name.startswith("test_") for name in asked.values()), asked
        assert asked["default"] == asked["replica"] != asked["second"]

    def test_nothing_is_monitored(self) -> None:
        names_of_databases()
        for alias in connections:
            wrapper: Any = connections[alias]
            assert wrapper.bgpool_source.connections.stats().phase is None

    def test_fixtures_and_rows(self) -> None:
        Item.objects.using("second").create(name="there")
        assert set(Item.objects.values_list("name", flat=True)) == {"first", "loaded"}

    def test_hooks(self) -> None:
        ran: list[int] = []
        with self.captureOnCommitCallbacks(execute=True):
            run(lambda: transaction.on_commit(lambda: ran.append(1)))
        assert ran == [1]

    async def test_async(self) -> None:
        await Item.objects.acreate(name="new")
        assert await Item.objects.filter(name="new").aexists()


class InTransactionsOfItsOwn(TransactionTestCase):
    serialized_rollback = True

    def test_hooks_run_at_commit(self) -> None:
        ran: list[int] = []
        with transaction.atomic():
            Item.objects.create(name="new")
            transaction.on_commit(lambda: ran.append(1))
        assert ran == [1]

    def test_the_rows_of_migrations_are_there_again(self) -> None:
        assert list(Item.objects.values_list("name", flat=True)) == ["first"]

    def test_threads(self) -> None:
        def create(number: int) -> None:
            Item.objects.create(name=str(number))
            connections.close_all()

        with ThreadPoolExecutor(3) as threads:
            list(threads.map(create, range(6)))
        assert Item.objects.count() == 7


class InAMirror(TransactionTestCase):
    databases = {"default", "replica"}  # noqa: RUF012  # as above

    def test_what_is_committed_is_there(self) -> None:
        Item.objects.create(name="new")
        assert Item.objects.using("replica").filter(name="new").exists()


class OverHttp(LiveServerTestCase):
    serialized_rollback = True

    def test_a_request(self) -> None:
        with urlopen(f"{self.live_server_url}/count", timeout=10) as response:
            assert response.read() == b"1"
