// The TypeScript client 2.x against a server that wants to know who calls: it finds the issuer by itself, registers,
// logs in as its second argument says, and calls a tool. What a person does in a browser is done here by following the
// issuer's redirects and forms.
import { Client, StreamableHTTPClientTransport, UnauthorizedError } from '@modelcontextprotocol/client';
import { check, endpoint, installedVersion, program } from './scenario.mjs';

const NAME = '@modelcontextprotocol/client';
const CALLBACK = 'http://127.0.0.1:9/callback'; // nothing listens there: the redirect is read and not followed
const STEPS = 20;

/** Does what a person and a browser do; gives the parameters with which the issuer sends them back. */
async function browse(start, login) {
  const cookies = new Map();
  let next = { url: start };
  for (let step = 0; step < STEPS; step += 1) {
    const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join('; ');
    const { url, body } = next;
    const method = body ? 'POST' : 'GET';
    const response = await fetch(url, { method, body, redirect: 'manual', headers: { cookie } });
    for (const line of response.headers.getSetCookie()) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
      if (value) cookies.set(name, value);
      else cookies.delete(name);
    }
    const location = response.headers.get('location');
    if (location?.startsWith(CALLBACK)) return new URL(location).searchParams;
    const page = await response.text();
    const action = /<form[^>]* action="([^"]+)"/.exec(page)?.[1];
    check(location || action, `${url} answered ${response.status} without a redirect or form: ${page}`);
    next = location
      ? { url: new URL(location, url) }
      : { url: new URL(action, url), body: new URLSearchParams({ login }) };
  }
  throw new Error(`no end after ${STEPS} redirects and forms`);
}

/** What the client keeps between its steps. */
class Person {
  redirectUrl = CALLBACK;
  clientMetadata = {
    client_name: 'bigiron-tests',
    redirect_uris: [CALLBACK],
    grant_types: ['authorization_code'],
    response_types: ['code'],
    token_endpoint_auth_method: 'none',
  };

  constructor(login) {
    this.login = login;
  }
  clientInformation() {
    return this.client;
  }
  saveClientInformation(client) {
    this.client = client;
  }
  tokens() {
    return this.saved;
  }
  saveTokens(tokens) {
    this.saved = tokens;
  }
  saveCodeVerifier(verifier) {
    this.verifier = verifier;
  }
  codeVerifier() {
    return this.verifier;
  }
  saveDiscoveryState(state) {
    this.discovered = state;
  }
  discoveryState() {
    return this.discovered;
  }
  async redirectToAuthorization(url) {
    this.sent = url;
    this.back = await browse(url, this.login);
  }
}

await program(NAME, installedVersion(NAME), async () => {
  const login = process.argv[3];
  const person = new Person(login);
  const refusals = [];
  const watched = async (url, init) => {
    const response = await fetch(url, init);
    if (String(url) === String(endpoint()) && [401, 403].includes(response.status)) {
      refusals.push({ status: response.status, challenge: response.headers.get('www-authenticate') });
    }
    return response;
  };
  const connect = async () => {
    const client = new Client({ name: 'bigiron-tests', version: '1.0.0' });
    const transport = new StreamableHTTPClientTransport(endpoint(), { authProvider: person, fetch: watched });
    const failed = await client.connect(transport).then(() => undefined, (error) => error);
    return { client, transport, failed };
  };

  const first = await connect();
  check(first.failed instanceof UnauthorizedError, `without a token: ${first.failed ?? 'it was let in'}`);
  check(person.sent.searchParams.get('code_challenge_method') === 'S256', `no PKCE: ${person.sent}`);
  check(person.sent.searchParams.get('resource') === String(endpoint()), `no resource: ${person.sent}`);
  await first.transport.finishAuth(person.back);

  const { client, failed } = await connect();
  if (failed) return { login, refusals, failed: String(failed) };
  const result = await client.callTool({ name: 'who', arguments: {} });
  await client.close();
  return { login, refusals, text: result.content[0].text };
});
