"""The models under study: where they come from, what their parts are, where they can be hooked."""
