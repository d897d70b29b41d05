"""The main server's pages for people: what is published, how good it is, and who uses it.

They are made on the server, need no script and change nothing: changes are commands and API calls.
`routes` serves them to operators who have logged in (`access`); `catalogue`, `rounds`, `fleet`
and `journal` say what stands on them, the templates how.
"""

from server.page.routes import page_routes

__all__ = ["page_routes"]
