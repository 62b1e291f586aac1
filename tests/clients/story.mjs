// A working day of the TypeScript client 2.x against the everything server. In a session: questions of tools answered,
// progress, a resource watched, a stream that ends in the middle and goes on. Stateless: questions as rounds, and calls
// that become tasks: one that ends by itself, one that asks in the middle, one that is taken back.
import { Client, SdkErrorCode, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { LEGACY, MODERN, check, endpoint, installedVersion, program } from './scenario.mjs';

const NAME = '@modelcontextprotocol/client';
const WATCHED = 'test://watched-resource';
const TASKS = 'io.modelcontextprotocol/tasks';
const POLL_MS = 20;
const ABLE = { sampling: {}, elicitation: { form: {} }, roots: { listChanged: false } };

/** A connected client that answers what it is asked. */
async function connect(mode, expected, extensions = {}) {
  const capabilities = { ...ABLE, extensions };
  const client = new Client({ name: 'bigiron-tests', version: '1.0.0' }, { versionNegotiation: { mode }, capabilities });
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

/**
 * Version 2.4 of the client has no word for tasks: it refuses a result of that type, and `tasks/get` before it is sent.
 * So its call is made as ever, and what came is seen at its transport; the other messages go through that transport,
 * which gives them their headers, with the `_meta` that the client put into its own call.
 */
function tapped(client, transport) {
  let meta;
  let lastResult;
  let lastId = 0;
  const waiting = new Map();
  const { send, onmessage } = transport;
  transport.send = (message, options) => {
    meta = message.params?._meta ?? meta;
    return send.call(transport, message, options);
  };
  transport.onmessage = (message, extra) => {
    lastResult = message.result ?? lastResult;
    const resolve = waiting.get(message.id);
    if (!resolve) return onmessage(message, extra);
    waiting.delete(message.id);
    resolve(message);
  };

  const ask = async (method, params) => {
    check(meta?.['io.modelcontextprotocol/protocolVersion'] === MODERN, `the client's own _meta: ${JSON.stringify(meta)}`);
    const id = `tasks-${(lastId += 1)}`;
    const answered = new Promise((resolve) => waiting.set(id, resolve));
    await transport.send({ jsonrpc: '2.0', id, method, params: { ...params, _meta: meta } });
    const { result, error } = await answered;
    check(result, `${method} was refused: ${JSON.stringify(error)}`);
    return result;
  };
  const begin = async (name, args) => {
    const refused = await client.callTool({ name, arguments: args }).then((result) => ({ result }), (error) => error);
    const says = `${name}: ${refused.message ?? JSON.stringify(refused)}`;
    check(refused.code === SdkErrorCode.UnsupportedResultType, `${says}; a client that knows tasks needs no tap`);
    check(lastResult?.resultType === 'task', `${name} answered ${JSON.stringify(lastResult)}, not a task`);
    return lastResult.taskId;
  };
  return { ask, begin };
}

async function tasks() {
  const { client, transport } = await connect({ pin: MODERN }, MODERN, { [TASKS]: {} });
  try {
    const { ask, begin } = tapped(client, transport);
    const until = async (taskId, status) => {
      for (;;) {
        const task = await ask('tasks/get', { taskId });
        if (task.status === status) return task;
        check(task.status === 'working', `${JSON.stringify(task)}, not ${status}`);
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      }
    };
    const ends = async (taskId, expected) => {
      const { result } = await until(taskId, 'completed');
      check(result.content[0].text === expected, `a task ended with ${JSON.stringify(result)}, not ${expected}`);
    };

    await ends(await begin('slow_compute', { seconds: 0.2, label: 'The sum' }), 'The sum took 0.2 seconds');

    const asking = await begin('confirm_delete', { filename: 'notes' });
    const { inputRequests } = await until(asking, 'input_required');
    check(inputRequests.confirm?.method === 'elicitation/create', `asked ${JSON.stringify(inputRequests)}`);
    const confirm = { action: 'accept', content: { confirm: true } };
    await ask('tasks/update', { taskId: asking, inputResponses: { confirm } });
    await ends(asking, 'Deleted notes');

    const long = await begin('slow_compute', { seconds: 600 });
    await ask('tasks/cancel', { taskId: long });
    await until(long, 'cancelled');
    return ['completed', 'asked', 'cancelled'];
  } finally {
    await client.close();
  }
}

await program(NAME, installedVersion(NAME), async () => {
  await inSession();
  await stateless();
  return { protocol: [LEGACY, MODERN], hits: 1, tasks: await tasks() };
});
