// The TypeScript client 2.x against a running bigiron, in every way it can connect:
// pinned to the stateless revision, choosing by itself, and the initialize handshake.
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { LEGACY, MODERN, check, endpoint, exercise, installedVersion, program } from './scenario.mjs';

const MODES = [
  { mode: { pin: MODERN }, expected: MODERN },
  { mode: 'auto', expected: MODERN },
  { mode: 'legacy', expected: LEGACY },
];

const NAME = '@modelcontextprotocol/client';

await program(NAME, installedVersion(NAME), async () => {
  const protocol = [];
  let hits = 0;
  for (const { mode, expected } of MODES) {
    const client = new Client({ name: 'bigiron-tests', version: '1.0.0' }, { versionNegotiation: { mode } });
    const transport = new StreamableHTTPClientTransport(endpoint());
    await client.connect(transport);
    try {
      const negotiated = client.getNegotiatedProtocolVersion();
      check(negotiated === expected, `mode ${JSON.stringify(mode)} negotiated ${negotiated}, not ${expected}`);
      hits = await exercise({
        listTools: async () => (await client.listTools()).tools,
        callTool: (name, args) => client.callTool({ name, arguments: args }),
      });
      if (!protocol.includes(negotiated)) protocol.push(negotiated);
      if (expected === LEGACY) await transport.terminateSession();
    } finally {
      await client.close();
    }
  }
  return { protocol, hits };
});
