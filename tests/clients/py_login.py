"""The Python `mcp` 2.x client against a server that wants to know who calls.

It finds the issuer by itself, registers, logs in as its second argument says, and calls a tool. What a person does in a
browser is done here by following the issuer's redirects and forms.
"""

import asyncio
import json
import re
import sys
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from scenario import LIMIT_S, check

CALLBACK = "http://127.0.0.1:9/callback"  # nothing listens there: the redirect is read and not followed
STEPS = 20


async def browse(url: str, login: str) -> dict[str, str]:
    """Does what a person and a browser do; gives the parameters with which the issuer sends them back."""
    async with httpx2.AsyncClient() as browser:
        form: dict[str, str] | None = None
        for _ in range(STEPS):
            response = await (browser.get(url) if form is None else browser.post(url, data=form))
            location = response.headers.get("location")
            if location and location.startswith(CALLBACK):
                return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
            action = re.search(r'<form[^>]* action="([^"]+)"', response.text)
            check(location or action, f"{url} answered {response.status_code} without a redirect or form: {response.text}")
            form = None if location else {"login": login}
            url = urljoin(url, location or action[1])
    raise AssertionError(f"no end after {STEPS} redirects and forms")


class Kept:
    """What the client keeps between its steps."""

    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


async def run(url: str, login: str) -> dict[str, Any]:
    sent: list[dict[str, list[str]]] = []
    refusals: list[dict[str, Any]] = []
    back: dict[str, str] = {}

    async def redirect(to: str) -> None:
        sent.append(parse_qs(urlsplit(to).query))
        back.update(await browse(to, login))

    async def callback() -> AuthorizationCodeResult:
        return AuthorizationCodeResult(code=back["code"], state=back["state"], iss=back.get("iss"))

    async def watch(response: httpx2.Response) -> None:
        if str(response.request.url) == url and response.status_code in (401, 403):
            refusals.append({"status": response.status_code, "challenge": response.headers.get("www-authenticate")})

    metadata = OAuthClientMetadata(
        client_name="bigiron-tests",
        redirect_uris=[CALLBACK],
        grant_types=["authorization_code"],
        response_types=["code"],
        token_endpoint_auth_method="none",
    )
    kept = Kept()
    person = OAuthClientProvider(url, metadata, kept, redirect, callback)
    outcome: dict[str, Any] = {"login": login, "refusals": refusals}
    async with httpx2.AsyncClient(auth=person, event_hooks={"response": [watch]}) as http:
        try:
            async with Client(streamable_http_client(url, http_client=http)) as client:
                result = await client.call_tool("who", {})
                outcome["text"] = result.content[0].text
                outcome["token"] = kept.tokens.access_token  # of an issuer that ends with the test
        except Exception as error:
            outcome["failed"] = f"{type(error).__name__}: {error}"
    check(sent and sent[0]["code_challenge_method"] == ["S256"], f"no PKCE: {sent}, {outcome}")
    check(sent[0]["resource"] == [url], f"no resource: {sent}")
    return outcome


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} http://127.0.0.1:PORT/mcp LOGIN")
    outcome = asyncio.run(asyncio.wait_for(run(*sys.argv[1:]), LIMIT_S))
    print(json.dumps({"client": "mcp", "version": version("mcp"), **outcome}))
