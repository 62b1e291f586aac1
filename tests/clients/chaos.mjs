// The TypeScript SDK 1.x client while the instance that runs its call is killed: it says on a line who runs the call, and
// at the end what it was told.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { check, endpoint } from './scenario.mjs';

/** Calls a tool that takes steps, and says after the third of them who runs it. */
async function call(client, name, label, steps) {
  const told = [];
  const onprogress = ({ progress, message }) => {
    told.push(progress);
    if (told.length === 3) console.log(JSON.stringify({ runs: message }));
  };
  const args = { label, steps, pause_ms: 100 };
  const result = await client.callTool({ name, arguments: args }, undefined, { onprogress });
  return { told, text: result.content[0].text };
}

const client = new Client({ name: 'bigiron-tests', version: '1.0.0' });
const transport = new StreamableHTTPClientTransport(endpoint());
await client.connect(transport);
const session = transport.sessionId;
const again = await call(client, 'steps', 'again', 20);
const once = await call(client, 'steps_once', 'once', 20).then(
  ({ text }) => ({ error: `a result: ${text}` }),
  (error) => ({ error: error.message }),
);
const { text: echo } = await call(client, 'steps', 'echo', 1);
check(transport.sessionId === session, 'the session is another');
await transport.terminateSession();
await client.close();
console.log(JSON.stringify({ steps: again.told, result: again.text, error: once.error, echo: echo.replace('echo ', '') }));
