// The TypeScript SDK 1.x client against a running bigiron: the initialize handshake and its session.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { LEGACY, check, endpoint, exercise, installedVersion, program } from './scenario.mjs';

const NAME = '@modelcontextprotocol/sdk';

await program(NAME, installedVersion(NAME), async () => {
  const client = new Client({ name: 'bigiron-tests', version: '1.0.0' });
  const transport = new StreamableHTTPClientTransport(endpoint());
  await client.connect(transport);
  try {
    check(transport.sessionId, 'initialize gave no Mcp-Session-Id');
    const negotiated = transport.protocolVersion;
    check(negotiated === LEGACY, `negotiated ${negotiated}, not ${LEGACY}`);
    const hits = await exercise({
      listTools: () => allPages(client),
      callTool: (name, args) => client.callTool({ name, arguments: args }),
    });
    await transport.terminateSession();
    return { protocol: [negotiated], hits };
  } finally {
    await client.close();
  }
});

/** This client leaves pagination to its caller. */
async function allPages(client) {
  const tools = [];
  let cursor;
  do {
    const page = await client.listTools({ cursor });
    tools.push(...page.tools);
    cursor = page.nextCursor;
  } while (cursor !== undefined);
  return tools;
}
