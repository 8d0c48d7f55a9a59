"""Ordinary Django tests. bgpool takes no part in a test run: it starts no monitor."""

from django.test import TestCase, TransactionTestCase

from ledger.models import Entry


class ViewsTest(TestCase):
    """The views, each test inside a transaction."""

    def test_views_write_a_row(self) -> None:
        for path in ("/plain/", "/unit/"):
            with self.subTest(path):
                self.client.get(path, {"key": "1.2.3"})
        self.assertEqual(Entry.objects.filter(worker=1, thread=2, n=3).count(), 2)


class CommittedTest(TransactionTestCase):
    """The unit of work, with a real COMMIT."""

    def test_a_unit_of_work_commits(self) -> None:
        self.client.get("/unit/", {"key": "1.2.3"})
        self.assertEqual(self.client.get("/").content, b"1")
