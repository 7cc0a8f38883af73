"""Bytes in and out: the only package that imports the client side of aiohttp."""
