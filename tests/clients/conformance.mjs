// Runs the official conformance scenarios that need only tools against the endpoint in argv[2], prints a
// table, and exits 1 unless every scenario of the list below ran and none has a failing check.
// Starting a server to test is the caller's part: scripts/conformance.sh.
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { endpoint, installedVersion } from './scenario.mjs';

const SCENARIO_LIMIT_MS = 60_000;

const CONTENT = ['simple-text', 'image', 'audio', 'embedded-resource', 'mixed-content', 'error', 'with-progress'];
const TOOLS = ['tools-list', ...CONTENT.map((kind) => `tools-call-${kind}`), 'json-schema-2020-12'];
const TRANSPORT = ['server-sse-multiple-streams', 'dns-rebinding-protection'];
const SESSION_ERA = ['server-initialize', 'ping', ...TOOLS, 'tools-call-with-logging', ...TRANSPORT];
const STATELESS_ERA = [
  ...['server-stateless', ...TOOLS, ...TRANSPORT],
  ...['http-header-validation', 'http-custom-header-server-validation'],
];

// `conformance-modern` and `conformance-legacy` are the names of two releases of the suite in package.json.
const PLAN = [
  ...STATELESS_ERA.map((scenario) => ({ suite: 'conformance-modern', revision: '2026-07-28', scenario })),
  ...[...SESSION_ERA, 'server-session-lifecycle'].map((scenario) => ({
    suite: 'conformance-modern',
    revision: '2025-11-25',
    scenario,
  })),
  ...SESSION_ERA.map((scenario) => ({ suite: 'conformance-legacy', revision: '2025-11-25', scenario })),
];

/** Runs one scenario in the suite's own program; gives its checks, or why there are none. */
async function run({ suite, revision, scenario }, url, scratch) {
  const directory = await mkdtemp(join(scratch, `${scenario}-`));
  const program = fileURLToPath(new URL(`./node_modules/${suite}/dist/index.js`, import.meta.url));
  const options = ['--url', url, '--scenario', scenario, '--spec-version', revision, '-o', directory];
  const { code, output } = await finished(spawn(process.execPath, [program, 'server', ...options]));
  const [result] = await readdir(directory);
  try {
    const checks = JSON.parse(await readFile(join(directory, result ?? '', 'checks.json'), 'utf8'));
    const has = (status) => checks.some((check) => check.status === status);
    if (has('FAILURE')) return { checks };
    if (code !== 0) return { checks, problem: `the suite ended with ${code}:\n${output}` };
    if (!has('SUCCESS')) return { checks, problem: 'nothing was checked' };
    return { checks };
  } catch {
    return { checks: [], problem: `did not run, the suite ended with ${code}:\n${output}` };
  }
}

function finished(child) {
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text) => (output += text));
  const timer = setTimeout(() => child.kill('SIGKILL'), SCENARIO_LIMIT_MS);
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code: code ?? signal, output });
    });
  });
}

function row(cells) {
  const widths = [19, 11, 37, 6, 6, 7, 7];
  return cells.map((cell, index) => String(cell).padEnd(widths[index] ?? 0)).join(' ').trimEnd();
}

const url = endpoint().href;
const scratch = await mkdtemp(join(tmpdir(), 'bigiron-conformance-'));
const notes = [];
let ran = 0;
let passed = 0;
let checksPassed = 0;
try {
  for (const suite of ['conformance-modern', 'conformance-legacy']) console.log(`${suite} ${installedVersion(suite)}`);
  console.log(row(['suite', 'revision', 'scenario', 'passed', 'failed', 'warned', 'skipped', 'verdict']));
  for (const item of PLAN) {
    const { checks, problem } = await run(item, url, scratch);
    const count = (status) => checks.filter((check) => check.status === status).length;
    const good = !problem && count('FAILURE') === 0;
    ran += checks.length > 0 ? 1 : 0;
    passed += good ? 1 : 0;
    checksPassed += count('SUCCESS');
    const counts = ['SUCCESS', 'FAILURE', 'WARNING', 'SKIPPED'].map(count);
    console.log(row([item.suite, item.revision, item.scenario, ...counts, good ? 'pass' : 'FAIL']));

    const where = `${item.suite} ${item.revision} ${item.scenario}`;
    if (problem) notes.push(`${where}: ${problem}`);
    for (const check of checks.filter(({ status }) => !['SUCCESS', 'INFO'].includes(status))) {
      const reason = check.errorMessage ?? check.details?.note ?? check.details?.message ?? check.description;
      notes.push(`${where}: ${check.status} ${check.id} (${check.name}): ${reason}`);
    }
  }
} finally {
  await rm(scratch, { recursive: true, force: true });
}

for (const note of notes) console.log(`- ${note}`);
if (ran !== PLAN.length) console.log(`conformance: only ${ran} of ${PLAN.length} scenarios could be run`);
console.log(`conformance: ${passed} of ${PLAN.length} scenarios passed (${checksPassed} checks)`);
process.exitCode = passed === PLAN.length && ran === PLAN.length ? 0 : 1;
