import unittest

from app import create


class AppTest(unittest.TestCase):
    def test_index(self):
        self.assertIn("flask app", create().test_client().get("/").text)
