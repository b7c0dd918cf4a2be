"""A service that says who it runs as."""

import getpass

import flask


def create() -> flask.Flask:
    """Makes the application."""
    app = flask.Flask(__name__)

    @app.get("/")
    def index() -> str:
        return f"flask {app.name} as {getpass.getuser()}"

    return app
