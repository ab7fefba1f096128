"""One module per transport, named after its URL scheme and imported when a URL asks for it."""
