// The MCP Inspector's command line against a running bigiron, in both eras. Each step is one run of the
// program, as somebody at a shell would start it.
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LEGACY, MODERN, check, endpoint, exercise, installedVersion, program } from './scenario.mjs';

const NAME = '@modelcontextprotocol/inspector';
const CLI = fileURLToPath(new URL(`./node_modules/${NAME}/clients/launcher/build/index.js`, import.meta.url));
const ERAS = [
  { era: 'modern', expected: MODERN },
  { era: 'legacy', expected: LEGACY },
];
// The exit code with which the Inspector reports a result that has isError set.
const EXIT_TOOL_IS_ERROR = 5;
const STEP_LIMIT_MS = 20_000;

await program(`${NAME} --cli`, installedVersion(NAME), async () => {
  // The Inspector keeps its files under HOME: give it an empty one, so that a developer's own stay out of this.
  const home = await mkdtemp(join(tmpdir(), 'bigiron-inspector-'));
  try {
    const protocol = [];
    let hits = 0;
    for (const { era, expected } of ERAS) {
      const { protocolVersion } = await invoke(home, era, ['--method', 'initialize']);
      check(protocolVersion === expected, `era ${era} negotiated ${protocolVersion}, not ${expected}`);
      protocol.push(protocolVersion);
      hits = await exercise({
        listTools: async () => (await invoke(home, era, ['--method', 'tools/list'])).tools,
        callTool: (name, args) =>
          invoke(home, era, [
            ...['--method', 'tools/call', '--tool-name', name],
            ...Object.entries(args).flatMap(([key, value]) => ['--tool-arg', `${key}=${value}`]),
          ]),
      });
    }
    return { protocol, hits };
  } finally {
    await rm(home, { recursive: true, force: true });
  }
});

/** One run of the Inspector's command line; gives the `result` that it prints. */
function invoke(home, era, options) {
  const common = ['--transport', 'http', '--protocol-era', era, '--format', 'json'];
  const argv = [CLI, '--cli', endpoint().href, ...common, ...options];
  const settings = { env: { ...process.env, HOME: home }, timeout: STEP_LIMIT_MS, maxBuffer: 16 * 1024 * 1024 };
  return new Promise((resolve, reject) => {
    execFile(process.execPath, argv, settings, (failure, stdout, stderr) => {
      const refuse = (why) => reject(new Error(`inspector ${options.join(' ')} (${era}): ${why}\n${stdout}${stderr}`));
      if (failure && failure.code !== EXIT_TOOL_IS_ERROR) {
        refuse(failure.message);
        return;
      }
      try {
        resolve(JSON.parse(stdout).result);
      } catch (error) {
        refuse(`printed no JSON: ${error.message}`);
      }
    });
  });
}
