"""The API and the server's own state over HTTP; each module is a router over a `Service`."""
