"""A policy behind a websocket, in openpi's protocol: observation in, action chunk out. Needs the extra `serve`."""
