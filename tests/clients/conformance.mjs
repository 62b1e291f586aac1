// Runs the official conformance scenarios against the endpoint in argv[2] (those whose names have argv[3] in them,
// when it is given), prints a table, and exits 1 unless every scenario of the list below ran and none has a failing check.
// Starting a server to test is the caller's part: scripts/conformance.sh.
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { endpoint, installedVersion } from './scenario.mjs';

const SCENARIO_LIMIT_MS = 60_000;

// Scenarios that both families of revisions have.
const CONTENT = ['simple-text', 'image', 'audio', 'embedded-resource', 'mixed-content', 'error', 'with-progress'];
const SHARED = [
  ...['tools-list', ...CONTENT.map((kind) => `tools-call-${kind}`), 'json-schema-2020-12'],
  ...['resources-list', 'resources-read-text', 'resources-read-binary', 'resources-templates-read'],
  ...['simple', 'with-args', 'embedded-resource', 'with-image'].map((kind) => `prompts-get-${kind}`),
  ...['prompts-list', 'completion-complete', 'server-sse-multiple-streams', 'dns-rebinding-protection'],
];
const SESSION_ERA = [
  ...['server-initialize', 'ping', 'logging-set-level', ...SHARED],
  ...['with-logging', 'sampling', 'elicitation'].map((kind) => `tools-call-${kind}`),
  ...['elicitation-sep1034-defaults', 'elicitation-sep1330-enums'],
  ...['resources-subscribe', 'resources-unsubscribe', 'server-sse-polling'],
];
const ROUNDS = [
  ...['basic-elicitation', 'basic-sampling', 'basic-list-roots', 'request-state', 'multiple-input-requests'],
  ...['multi-round', 'missing-input-response', 'non-tool-request', 'result-type', 'unsupported-methods'],
  ...['tampered-state', 'capability-check', 'ignore-extra-params', 'validate-input'],
];
const TASKS = [
  ...['lifecycle', 'capability-negotiation', 'wire-fields', 'request-state-removal', 'mrtr-input'],
  ...['request-headers', 'dispatch-and-envelope', 'status-notifications', 'required-task-error', 'mrtr-composition'],
];
const STATELESS_ERA = [
  ...['server-stateless', ...SHARED, 'sep-2164-resource-not-found', 'caching'],
  ...ROUNDS.map((kind) => `input-required-result-${kind}`),
  ...['http-header-validation', 'http-custom-header-server-validation'],
];
const EXTENSIONS = [
  ...TASKS.map((kind) => `tasks-${kind}`),
  ...['directory', 'enumeration', 'manifest'].map((kind) => `sep-2640-skills-${kind}`),
];

// What the suite itself leaves out, in every server: it has no test yet for what this is about.
const LEFT_OUT_BY_THE_SUITE = ['tasks-status-notifications'];

const plan = (suite, revision, scenarios) => scenarios.map((scenario) => ({ suite, revision, scenario }));
// `conformance-modern` and `conformance-legacy` are the names of two releases of the suite in package.json.
const PLAN = [
  ...plan('conformance-modern', '2026-07-28', STATELESS_ERA),
  ...plan('conformance-modern', 'extension', EXTENSIONS), // of no revision
  ...plan('conformance-modern', '2025-11-25', [...SESSION_ERA, 'server-session-lifecycle']),
  ...plan('conformance-legacy', '2025-11-25', SESSION_ERA),
].filter(({ scenario }) => scenario.includes(process.argv[3] ?? ''));

/** Runs one scenario in the suite's own program; gives its checks, or why there are none. */
async function run({ suite, revision, scenario }, url, scratch) {
  const directory = await mkdtemp(join(scratch, `${scenario}-`));
  const program = fileURLToPath(new URL(`./node_modules/${suite}/dist/index.js`, import.meta.url));
  const options = ['--url', url, '--scenario', scenario, '-o', directory];
  if (revision !== 'extension') options.push('--spec-version', revision);
  const { code, output } = await finished(spawn(process.execPath, [program, 'server', ...options]));
  const [result] = await readdir(directory);
  try {
    const checks = JSON.parse(await readFile(join(directory, result ?? '', 'checks.json'), 'utf8'));
    const has = (status) => checks.some((check) => check.status === status);
    if (has('FAILURE')) return { checks };
    if (code !== 0) return { checks, problem: `the suite ended with ${code}:\n${output}` };
    const leftOut = LEFT_OUT_BY_THE_SUITE.includes(scenario) && has('SKIPPED');
    if (!has('SUCCESS') && !leftOut) return { checks, problem: 'nothing was checked' };
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
