"""A small site whose tests are run with manage.py, as a user's are."""
