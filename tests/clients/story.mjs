// A working day of the TypeScript client 2.x against the everything server. In a session: questions of tools answered,
// progress, a resource watched, a stream that ends in the middle and goes on. Stateless: questions as rounds.
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { LEGACY, MODERN, check, endpoint, installedVersion, program } from './scenario.mjs';

const NAME = '@modelcontextprotocol/client';
const WATCHED = 'test://watched-resource';
const ABLE = { sampling: {}, elicitation: { form: {} }, roots: { listChanged: false } };

/** A connected client that answers what it is asked. */
async function connect(mode, expected) {
  const client = new Client({ name: 'bigiron-tests', version: '1.0.0' }, { versionNegotiation: { mode }, capabilities: ABLE });
  client.setRequestHandler('sampling/createMessage', async ({ params }) => ({
    model: 'none',
    role: 'assistant',
    content: { type: 'text', text: `sampled ${params.messages.length} message` },
  }));
  client.setRequestHandler('elicitation/create', async ({ params }) => {
    const names = Object.keys(params.requestedSchema.properties);
    return { action: 'accept', content: Object.fromEntries(names.map((name) => [name, `my ${name}`])) };
  });
  client.setRequestHandler('roots/list', async () => ({ roots: [{ uri: 'file:///work', name: 'work' }] }));
  const transport = new StreamableHTTPClientTransport(endpoint());
  await client.connect(transport);
  const negotiated = client.getNegotiatedProtocolVersion();
  check(negotiated === expected, `negotiated ${negotiated}, not ${expected}`);
  return { client, transport };
}

async function says(client, name, args, expected, options) {
  const result = await client.callTool({ name, arguments: args }, options);
  const text = result.content?.[0]?.text ?? '';
  check(text.includes(expected), `${name} answered ${JSON.stringify(result)}, not ${expected}`);
}

async function inSession() {
  const { client, transport } = await connect('legacy', LEGACY);
  try {
    await says(client, 'test_sampling', { prompt: 'Anything' }, 'LLM response: sampled 1 message');
    await says(client, 'test_elicitation', { message: 'Who?' }, 'my username');

    const updates = [];
    const updated = new Promise((resolve) => {
      client.setNotificationHandler('notifications/resources/updated', ({ params }) => {
        updates.push(params.uri);
        resolve();
      });
    });
    await client.subscribeResource({ uri: WATCHED });
    await says(client, 'test_trigger_resource_change', {}, 'Said.');
    await updated;
    check(updates.every((uri) => uri === WATCHED), `updates of ${updates}`);

    const steps = [];
    const onprogress = ({ progress }) => steps.push(progress);
    await says(client, 'test_reconnection', {}, 'The client came back for this.', { onprogress });
    check(String(steps) === '1,2,3,4,5,6', `steps over a broken stream: ${steps}`);
    await transport.terminateSession();
  } finally {
    await client.close();
  }
}

async function stateless() {
  const { client } = await connect({ pin: MODERN }, MODERN);
  try {
    await says(client, 'test_input_required_result_elicitation', {}, 'Hello, my name!');
    await says(client, 'test_input_required_result_multi_round', {}, 'my name likes my color');
    await says(client, 'test_input_required_result_list_roots', {}, 'file:///work');
  } finally {
    await client.close();
  }
}

await program(NAME, installedVersion(NAME), async () => {
  await inSession();
  await stateless();
  return { protocol: [LEGACY, MODERN], hits: 1 };
});
