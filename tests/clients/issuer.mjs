// An OAuth server as its authors ship it (oidc-provider), for one resource: clients register themselves, log in with a
// form, and get tokens that are JWTs for that resource. The token of who logs in as "guest" grants another scope there.
// Prints where it is, as a JSON line, and serves until its standard input ends.
import { generateKeyPairSync } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const SCOPE = 'mcp:tools';
const GUEST_SCOPE = 'mcp:look';
const FORM = 16_384; // no form has more bytes

const resource = process.argv[2];
if (!resource) throw new Error(`usage: ${process.argv[1]} URL-OF-THE-RESOURCE`);

const server = createServer();
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const issuer = `http://127.0.0.1:${server.address().port}`;

const key = (kind, options, extra) => ({
  ...generateKeyPairSync(kind, options).privateKey.export({ format: 'jwk' }),
  ...extra,
  use: 'sig',
});

const provider = new Provider(issuer, {
  jwks: {
    keys: [
      key('ec', { namedCurve: 'P-256' }, { kid: 'access', alg: 'ES256' }),
      key('rsa', { modulusLength: 2048 }, { kid: 'id', alg: 'RS256' }),
    ],
  },
  cookies: { keys: [crypto.randomUUID()] },
  scopes: ['openid', 'offline_access', SCOPE],
  pkce: { required: () => true },
  ttl: { AccessToken: 600, Session: 600, Interaction: 600, Grant: 600, IdToken: 600 },
  findAccount: (_, accountId) => ({ accountId, claims: () => ({ sub: accountId }) }),
  formats: {
    customizers: {
      jwt(_, token, { payload }) {
        if (payload.sub === 'guest') payload.scope = GUEST_SCOPE;
      },
    },
  },
  interactions: { url: (_, { uid }) => `/interaction/${uid}` },
  features: {
    devInteractions: { enabled: false },
    registration: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo(_, indicator) {
        if (indicator !== resource) throw new Error(`${indicator} is not ${resource}`);
        return { scope: SCOPE, audience: resource, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } } };
      },
      useGrantedResource: () => true,
    },
  },
});
provider.on('server_error', (_, error) => console.error(error));

async function form(request) {
  let text = '';
  for await (const chunk of request) {
    text += chunk;
    if (text.length > FORM) throw new Error('a long form');
  }
  return new URLSearchParams(text);
}

// A page with a form for each prompt; what it sends says who logs in, and that they agree.
async function interact(request, response) {
  const { prompt, params, session, grantId } = await provider.interactionDetails(request, response);
  if (request.method === 'GET') {
    response.setHeader('Content-Type', 'text/html');
    response.end(`<form method="post" action="${request.url}"><input name="login"><button>${prompt.name}</button></form>`);
    return;
  }
  const login = (await form(request)).get('login');
  if (prompt.name === 'login') {
    return provider.interactionFinished(request, response, { login: { accountId: login } });
  }
  const { accountId } = session;
  const Grant = provider.Grant;
  const grant = grantId ? await Grant.find(grantId) : new Grant({ accountId, clientId: params.client_id });
  const { missingOIDCScope, missingResourceScopes } = prompt.details;
  if (missingOIDCScope) grant.addOIDCScope(missingOIDCScope.join(' '));
  for (const [indicator, scopes] of Object.entries(missingResourceScopes ?? {})) {
    grant.addResourceScope(indicator, scopes.join(' '));
  }
  const consent = { consent: { grantId: await grant.save() } };
  return provider.interactionFinished(request, response, consent, { mergeWithLastSubmission: true });
}

const callback = provider.callback();
server.on('request', (request, response) => {
  if (!request.url.startsWith('/interaction/')) return callback(request, response);
  interact(request, response).catch((error) => {
    console.error(error);
    response.statusCode = 500;
    response.end(String(error));
  });
});

console.log(JSON.stringify({ issuer }));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
