"""One module for every change of the tables, in order of `down_revision`."""
