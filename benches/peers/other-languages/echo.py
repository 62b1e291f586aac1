"""FastMCP's server with one `echo` tool, over its own HTTP server, put together as its documentation does.

Usage: python echo.py PORT
"""

import sys

from fastmcp import FastMCP

mcp = FastMCP("fastmcp")


@mcp.tool
def echo(message: str) -> str:
    """Sends the message back."""
    return message


mcp.run(transport="http", host="127.0.0.1", port=int(sys.argv[1]), path="/mcp", stateless_http=True,
        json_response=True, show_banner=False, log_level="error", uvicorn_config={"access_log": False})
